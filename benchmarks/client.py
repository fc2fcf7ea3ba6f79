"""The load: a fixed number of calls over a fixed number of connections, each sending its next call when it has its answer.

Its own protocol over raw sockets reads just enough of HTTP to know where an answer ends. Runs in a process of its own
(`python -m benchmarks.client '<json>'`) and prints what it saw as JSON; its CPU belongs to nobody's figures.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_END_OF_CHUNKS = b"\r\n0\r\n\r\n"


@dataclass
class Seen:
    """Times in seconds, one a call; first: until the first byte of the answer."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    failure: str = ""


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, request: bytes, left: list[int], pace: float, seen: Seen, done: asyncio.Future[None]) -> None:
        self._request, self._left, self._pace, self._seen, self._done = request, left, pace, seen, done
        self._buffer = b""
        self._started = self._first = 0.0
        self._body_left = -1  # -1: reading the head; -2: chunks
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._next()

    def _next(self) -> None:
        if self._left[0] == 0:
            self._transport.close()
            if not self._done.done():
                self._done.set_result(None)
            return
        self._left[0] -= 1
        wait = self._started + self._pace - time.perf_counter()
        if self._pace and wait > 0:
            asyncio.get_running_loop().call_later(wait, self._send)
        else:
            self._send()

    def _send(self) -> None:
        self._buffer, self._body_left, self._first = b"", -1, 0.0
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._first:
            self._first = time.perf_counter()
        if self._body_left == -1:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            status = self._buffer[9:12].decode()
            self._seen.statuses[status] = self._seen.statuses.get(status, 0) + 1
            length = _LENGTH.search(self._buffer, 0, end)
            data = self._buffer[end + 4 :]
            self._body_left = int(length.group(1)) if length else -2
            self._buffer = b""
        if self._body_left >= 0:
            self._body_left -= len(data)
            if self._body_left == 0:
                self._ended()
            return
        self._buffer = (self._buffer + data)[-len(_END_OF_CHUNKS) :]
        if self._buffer == _END_OF_CHUNKS:
            self._ended()

    def _ended(self) -> None:
        now = time.perf_counter()
        self._seen.latencies.append(now - self._started)
        self._seen.firsts.append(self._first - self._started)
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._seen.failure = f"a connection was closed during a call: {error!r}"
            self._done.set_result(None)


async def run(*, port: int, connections: int, calls: int, model: str, stream: bool, token: str, pace: float) -> Seen:
    """Makes the calls. pace: seconds from one call of a connection to its next, at the least; 0: as fast as answers come."""
    messages = [{"role": "user", "content": "Say hello."}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 64, "stream": stream})
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    seen, left, loop = Seen(), [calls], asyncio.get_running_loop()

    async def connection() -> None:
        done: asyncio.Future[None] = loop.create_future()
        await loop.create_connection(lambda: Connection(request, left, pace, seen, done), "127.0.0.1", port)
        await done

    started = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    seen.seconds = time.perf_counter() - started
    return seen


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(run(**json.loads(sys.argv[1]))))))
