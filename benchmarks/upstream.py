"""The provider of the benchmarks: as little work as Python allows, so that the measured processes decide the figures.

Answers `POST /v1/chat/completions` of any model at once, and of `bench-<ms>` or `hostile-<ms>` with `"stream": true` as 50
chunks that many milliseconds apart (paced, so that nobody is spared work by finding several chunks in one read).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import cast

import uvloop

CHUNKS = 50
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_PACE = re.compile(rb'"(?:bench|hostile)-(\d+)"')
_STREAM = re.compile(rb'"stream": ?true')
_WANTS_USAGE = re.compile(rb'"include_usage": ?true')
_USAGE = {"prompt_tokens": 12, "completion_tokens": CHUNKS, "total_tokens": 12 + CHUNKS}
_HEAD = {"id": "chatcmpl-bench", "created": 1_700_000_000, "model": "bench"}


def _plain() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello from upstream. " * 8}, "finish_reason": "stop"}
    body = json.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _event(choices: list[object], **extra: object) -> bytes:
    event = {**_HEAD, "object": "chat.completion.chunk", "choices": choices, **extra}
    data = b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


PLAIN = _plain()
OPENING = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = _event([{"index": 0, "delta": {"content": "Hello there. "}, "finish_reason": None}])
STOP = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
USAGE = _event([], usage=_USAGE)
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_LOOKED_AT = 16 * 1024
"""Bytes at the beginning and at the end of a large body in which its options are looked for."""


class Upstream(asyncio.Protocol):
    """One connection; requests one after another, bodies by Content-Length."""

    def __init__(self) -> None:
        self._buffer = b""
        self._parts: list[bytes] = []
        self._missing = 0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own

    def data_received(self, data: bytes) -> None:
        # The parts of a large body are put together once: this is not to be what callers beside one wait for.
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        self._buffer += b"".join(self._parts)
        self._parts.clear()
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, end)
        size = end + 4 + (int(length.group(1)) if length else 0)
        if len(self._buffer) < size:
            self._missing = size - len(self._buffer)
            return
        body, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
        if len(body) > 2 * _LOOKED_AT:
            body = body[:_LOOKED_AT] + body[-_LOOKED_AT:]
        if not _STREAM.search(body):
            self._transport.write(PLAIN)
            return
        pace = _PACE.search(body)
        tail = STOP + (USAGE if _WANTS_USAGE.search(body) else b"") + DONE
        self._send_chunk(CHUNKS, int(pace.group(1)) / 1000 if pace else 0.0, tail)

    def _send_chunk(self, left: int, pace: float, tail: bytes) -> None:
        if self._transport.is_closing():
            return
        if left == 0:
            self._transport.write(tail)
            return
        self._transport.write(OPENING + CHUNK if left == CHUNKS else CHUNK)
        self._loop.call_later(pace, self._send_chunk, left - 1, pace, tail)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
