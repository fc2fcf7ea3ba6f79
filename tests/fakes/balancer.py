"""A load balancer for TCP, as small as they come: it asks each edge whether it is ready, and spreads connections over those."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from types import TracebackType


class Balancer:
    """Listens on loopback and passes each connection to one of `ports`.

    It looks at `/readyz` every `interval` seconds and gives new connections to those that said 200, in turn; a connection that
    is refused goes to the next one. Open connections stay where they are. `ports` may change; `connections` counts by port.
    """

    def __init__(self, ports: Sequence[int], *, interval: float = 0.25) -> None:
        self.ports = list(ports)
        self.interval = interval
        self.ready: set[int] = set()
        self.connections: Counter[int] = Counter()
        self.port = 0
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Balancer:
        await self._look()
        self._run(self._keep_looking())
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _run(self, work) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self.interval)
            await self._look()

    async def _look(self) -> None:
        ports = list(self.ports)
        told = await asyncio.gather(*(self._is_ready(port) for port in ports))
        self.ready = {port for port, ready in zip(ports, told, strict=True) if ready}

    async def _is_ready(self, port: int) -> bool:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                line = await reader.readline()
        except (OSError, TimeoutError):
            return False
        finally:
            if writer is not None:
                writer.transport.abort()
        return b" 200 " in line

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._run(self._join(reader, writer))

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far: asyncio.StreamWriter | None = None
        try:
            far_reader, far = await self._dial()
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, far))
                both.create_task(_pump(far_reader, writer))
        except* OSError:
            pass  # one end is gone, and the other is told below
        finally:
            for end in (writer, far):
                if end is not None:
                    with contextlib.suppress(OSError):
                        end.close()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._turn += 1
        turn = self._turn % max(1, len(self.ports))
        order = self.ports[turn:] + self.ports[:turn]
        for port in sorted(order, key=lambda one: one not in self.ready):
            with contextlib.suppress(OSError):
                both = await asyncio.open_connection("127.0.0.1", port)
                self.connections[port] += 1
                return both
        raise ConnectionRefusedError("no edge takes connections")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
