"""The log's sink: nobody waits for it, nothing fails with it, and what it loses is counted and told."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gateway.process import log_sink, tasks
from gateway.process.log_sink import Sink, Stream


def until(claim: Callable[[], bool], seconds: float = 5.0) -> None:
    ends = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that holds 4 KiB: its reading and its writing end."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            assert end == reader  # closed by the test


def read(reader: int) -> bytes:
    got = b""
    try:
        while part := os.read(reader, 1 << 16):
            got += part
    except BlockingIOError:
        pass
    return got


def test_lines_come_whole_and_in_order(pipe):
    sink, got = Sink(pipe[1], lambda lost: "lost\n"), b""
    for number in range(1000):
        sink.write(f"line {number} {'x' * (number % 300)}\n")

    def all_there() -> bool:
        nonlocal got
        got += read(pipe[0])
        return got.count(b"\n") == 1000

    until(all_there)
    assert [line.split()[1] for line in got.splitlines()] == [str(number).encode() for number in range(1000)]
    assert sink.lost == 0


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_what_it_loses_is_told_when_it_is_read(pipe):
    sink = Sink(pipe[1], lambda lost: f"lost {lost}\n", most_lines=100)
    started = time.monotonic()
    for number in range(1000):
        sink.write(f"line {number} {'x' * 100}\n")
    assert time.monotonic() - started < 1.0
    until(lambda: sink.lost >= 700)
    got = b""

    def told() -> bool:
        nonlocal got
        got += read(pipe[0])
        return b"lost" in got

    until(told)
    lines = got.decode().splitlines()
    assert lines[-1] == f"lost {sink.lost}"
    assert all(line.startswith("line ") and len(line) > 100 for line in lines[:-1])
    sink.write("again\n")
    until(lambda: b"again\n" in read(pipe[0]))


def test_a_reader_who_is_gone_and_a_full_disk_fail_nothing(pipe):
    os.close(pipe[0])
    full = os.open("/dev/full", os.O_WRONLY)
    for fd in (pipe[1], full):
        # A number of its own, never closed: the thread goes on trying, and would write into what another test opens under it.
        sink = Sink(os.dup(fd), lambda lost: "lost\n", most_lines=10)
        for _ in range(50):
            sink.write("a line\n")
        until(lambda sink=sink: sink.lost >= 30)
    os.close(full)


def test_a_stream_that_is_closed_or_not_there_fails_nothing():
    closed = open(os.devnull, "w")  # noqa: SIM115 - it is closed on purpose
    closed.close()
    for stream in (closed, None):
        sink = Stream(lambda stream=stream: stream)
        sink.write("a line\n")
        assert sink.lost == 1


def test_the_last_lines_of_a_process_are_written_and_one_that_cannot_write_them_ends_all_the_same():
    code = (
        "import sys; from gateway.process import logs; logs.configure('info', 'json', 'test')\n"
        "log = logs.get_logger('x')\nfor number in range(500): log.info('said', number=number)\n"
        "raise SystemExit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert done.stderr.count('"event": "said"') == 500
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=writer)
    assert process.wait(20) == 3  # nobody reads
    os.close(reader)
    os.close(writer)
    closed = subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "$0" 2>&- >&-', code], timeout=30, check=False)
    assert closed.returncode == 3


def test_a_forked_child_writes_its_own_lines_and_none_of_its_parents(pipe):
    sink = Sink(pipe[1], lambda lost: "lost\n")
    sink.write("parent\n")
    assert sink.flush(5)
    if (child := os.fork()) == 0:
        sink.write("child\n")
        os._exit(0 if sink.flush(5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert read(pipe[0]) == b"parent\nchild\n"
    assert log_sink.lost_lines() >= 0


# -- tasks that go on ---------------------------------------------------------------------------------------------------------


async def test_a_task_that_fails_begins_anew(monkeypatch, log_lines):
    monkeypatch.setattr(tasks, "AGAIN", 0.01)
    rounds = []

    @tasks.survives
    async def keep_beating() -> None:
        while True:
            rounds.append(1)
            if len(rounds) in {1, 3}:
                raise ZeroDivisionError
            await asyncio.sleep(0.01)

    running = asyncio.create_task(keep_beating())
    async with asyncio.timeout(5):
        while len(rounds) < 6:  # noqa: ASYNC110 - the task sends no events
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [line["event"] for line in log_lines()] == ["task_failed"] * 2


def test_a_look_that_fails_is_followed_by_the_next(log_lines):
    stop, looks = threading.Event(), []

    def look() -> None:
        looks.append(1)
        if len(looks) < 3:
            raise ZeroDivisionError
        stop.set()

    tasks.keep_looking(look, every=0.01, stop=stop)
    assert len(looks) == 3
    assert [line["event"] for line in log_lines()] == ["task_failed"] * 2
