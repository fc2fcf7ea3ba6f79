"""The calm caller: plain calls at a steady pace with a valid token, each fourth over a new connection, whatever else goes on.

Calls start when they are due, not when the one before has ended, and their latency counts from that moment: a server that
stalls for a second is seen by each call of that second. Runs in a process of its own (`python -m benchmarks.calm '<json>'`) and
prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field

import uvloop

LONGEST = 15.0
"""Seconds after which a call counts as not answered."""


@dataclass
class Seen:
    """latencies: seconds, one a call that was answered. due: when that call began, in seconds from the start.
    statuses: calls by status; `none` was not answered at all.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    due: list[float] = field(default_factory=list)


class _Caller:
    """Calls over kept connections, and over new ones."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port, self._request = port, request
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self, *, newly: bool) -> str:
        """The status of one call. newly: over a connection of its own, as an application does that has just started."""
        if self._idle and not newly:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        kept = False
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            await reader.readexactly(int(fields[b"content-length"]))
            if not newly and fields.get(b"connection") != b"close":
                self._idle.append((reader, writer))
                kept = True
            return head[9:12].decode()
        finally:
            if not kept:
                writer.close()


async def run(*, port: int, token: str, model: str, per_second: float, seconds: float) -> Seen:
    """Calls for so many seconds."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 64})
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    seen, caller = Seen(), _Caller(port, request)

    async def call(due: float, *, newly: bool) -> None:
        try:
            async with asyncio.timeout(LONGEST):
                status = await caller.call(newly=newly)
        except (TimeoutError, OSError, EOFError, KeyError, ValueError):
            status = "none"
        else:
            seen.latencies.append(time.perf_counter() - due)
            seen.due.append(due - started)
        seen.statuses[status] = seen.statuses.get(status, 0) + 1

    started = time.perf_counter()
    async with asyncio.TaskGroup() as calls:
        for number in range(round(seconds * per_second)):
            due = started + number / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            calls.create_task(call(due, newly=number % 4 == 0))
    return seen


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(run(**json.loads(sys.argv[1]))))))
