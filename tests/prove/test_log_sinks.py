"""C17: nobody takes the lines of the log, and nothing but the log suffers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.prove.site import Site, outcomes
from tests.suite.conftest import CENT
from tests.suite.load import paced_calls
from tests.suite.stack import wait_for

READ = 2.0
"""Seconds in which what waited comes, once somebody reads."""
_PIPE = 4096  # bytes: the least that a pipe can be made to hold


class Gone:
    """A pipe whose reader is gone: EPIPE."""

    def __init__(self) -> None:
        reader, self.fd = os.pipe()
        os.close(reader)


class Full:
    """A disk without room: ENOSPC."""

    def __init__(self) -> None:
        self.fd = os.open("/dev/full", os.O_WRONLY)


class Blocked:
    """A pipe that is full, and that nobody reads until `read` is called."""

    def __init__(self) -> None:
        self.reader, self.fd = os.pipe()
        fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _PIPE)
        os.write(self.fd, b"x" * (_PIPE - 1) + b"\n")

    def read(self, seconds: float) -> bytes:
        """What comes in this time."""
        got, until = b"", time.monotonic() + seconds
        os.set_blocking(self.reader, False)
        while time.monotonic() < until:
            try:
                got += os.read(self.reader, 1 << 16)
            except BlockingIOError:
                time.sleep(0.01)
        return got


@contextmanager
def running(site: Site, kind: type[Gone | Full | Blocked]) -> Iterator[dict[str, Gone | Full | Blocked]]:
    """All services, each with such a sink of its own."""
    names = [*site.all_of("auth"), "admin", *site.all_of("proxy")]
    sinks = {name: kind() for name in names}
    site.stack.sinks = {name: sink.fd for name, sink in sinks.items()}
    site.stack.start(*names)
    try:
        site.stack.wait_until_ready(60)
        yield sinks
    finally:
        site.stack.close()
        for sink in sinks.values():
            os.close(sink.fd)


@pytest.mark.proves("C17")
@pytest.mark.parametrize("kind", [Gone, Full, Blocked], ids=["gone", "full", "blocked"])
async def test_a_log_that_nobody_takes_fails_nothing(site, proof, kind):
    site = site(ready=False)
    with running(site, kind) as sinks:
        token, over = site.token(max_amount=1000), asyncio.Event()
        async with site.door() as door:
            kind_of_call = {"model": "cent", "prompt": "tokens:8 chunks:4 seconds:0.3"}
            load = asyncio.create_task(paced_calls(door, token, a_second=20, until=over.is_set, connections=50, **kind_of_call))
            before = site.metric("gateway_auth_sweep_timestamp_seconds")
            await asyncio.sleep(proof.size(90, 8))
            over.set()
            told = await load
        proof.only("outcomes", outcomes(told), {"200"})
        swept = await asyncio.to_thread(site.metric_once, "gateway_auth_sweep_timestamp_seconds", before + 1.0)
        proof.holds("the sweeper went on", swept > before, True, swept > before)
        site.settle(CENT, told)
        for name, sink in sinks.items():
            if isinstance(sink, Blocked) and name.startswith("proxy"):  # which has a line for each call
                lines = await asyncio.to_thread(sink.read, READ)
                proof.holds(f"{name}: its lines come when they are read", lines.count(b"\n") - 1, ">= 1", b'"event"' in lines)
        proof.equals("services that ended", [name for name, one in site.stack.processes.items() if one.poll() is not None], [])
        wait_for("the edge is ready", lambda: site.stack.is_ready("proxy"), 10)
