"""A network that misbehaves: a TCP proxy between two services whose fault can be switched while connections are open."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from types import TracebackType


class Fault(enum.Enum):
    """What happens to bytes and connections."""

    NONE = "none"
    STALL = "stall"  # nothing passes either way; it is kept and passes later
    SWALLOW_REPLIES = "swallow replies"  # requests pass, what comes back is thrown away
    HALF_OPEN = "half open"  # the far side is gone and this side is not told: what is sent is thrown away


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Chaos:
    """Listens on loopback and passes bytes to `host:port`, as well as `fault` and `latency` let it.

    latency: seconds that each piece of bytes waits, each way. `connections` counts those taken so far.
    """

    def __init__(self, host: str, port: int, *, latency: float = 0.0) -> None:
        self.target = (host, port)
        self.latency = latency
        self.connections = 0
        self._fault = Fault.NONE
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        return self._port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        if fault is Fault.STALL:
            self._flowing.clear()
        else:
            self._flowing.set()

    def cut(self) -> None:
        """Resets every open connection, both ends."""
        for writer in list(self._writers):
            _reset(writer)

    async def refuse(self) -> None:
        """Takes no new connections: they are refused. Open ones live on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Takes connections, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port, backlog=1024)
            self._port = self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Chaos:
        await self.accept()
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.refuse()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far: asyncio.StreamWriter | None = None
        try:
            far_reader, far = await asyncio.open_connection(*self.target)
            self._writers.add(far)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far, replies=False))
                both.create_task(self._pump(far_reader, writer, replies=True))
        except* OSError:
            pass  # one end is gone, and the other is told below
        finally:
            for end in (writer, far):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        while piece := await reader.read(65536):
            if self.latency:
                await asyncio.sleep(self.latency)
            await self._flowing.wait()
            if self._fault is Fault.HALF_OPEN or (replies and self._fault is Fault.SWALLOW_REPLIES):
                continue
            writer.write(piece)
            await writer.drain()
        if replies and self._fault is Fault.HALF_OPEN:
            await asyncio.Event().wait()  # the far side closed, and this side must not hear of it
        with contextlib.suppress(OSError):
            writer.write_eof()
