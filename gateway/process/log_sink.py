"""Where log lines go: a queue and a thread of its own, so that no request waits for, or fails with, whoever reads the log.

Standard error may be closed, full, or a pipe that nobody reads. A write to such a pipe blocks for ever, and it cannot be made
non-blocking: the mode belongs to the pipe, which other processes share.
"""

from __future__ import annotations

import atexit
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final, TextIO
from weakref import WeakSet

MOST_LINES: Final = 4_000
"""Lines that wait while the sink takes none, some 2 MB; what comes on top is lost and counted."""
GATHER: Final = 0.02
"""Seconds in which lines gather: one wake-up of the thread for all of them, which a busy event loop hardly notices."""
AGAIN: Final = 0.25
"""Seconds between two attempts at a sink that refuses."""
LAST_SECONDS: Final = 1.0
"""Seconds that a process which ends waits for its last lines to be written."""
_ATOMIC: Final = select.PIPE_BUF  # bytes that no other process's output can come between, where several share one pipe
_AT_ONCE: Final = 64 * 1024  # the same for a file: each write costs the event loop a turn of the interpreter's lock


class Sink:
    """Writes lines to a file descriptor, in order, on a thread that starts with the first line.

    `write` never raises and never waits. It takes no lock, so that signal handlers and destructors may log at any moment.
    fd: stays open as long as the process. report: makes the line that says how many lines were lost.
    """

    def __init__(self, fd: int, report: Callable[[int], str], *, most_lines: int = MOST_LINES) -> None:
        self._fd = fd
        self._report = report
        self._most_lines = most_lines
        self._chunk = _AT_ONCE if _is_file(fd) else _ATOMIC
        self._queue: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._torn = False  # whether what was written last ends in the middle of a line
        self._told = 0  # how many of the lost lines have been reported
        self.lost = 0
        """Lines that were lost so far."""
        _sinks.add(self)

    def write(self, line: str) -> None:
        """Takes one line, its end included; counts it as lost where too many wait already."""
        if self._queue.qsize() >= self._most_lines:
            self.lost += 1  # two threads may count as one here; a lock would cost every line, and block signal handlers
            return
        self._queue.put(line)
        if self._thread is None:
            self._start()

    def flush(self, seconds: float) -> bool:
        """Waits until what was written before is out, at most so long; gives whether it is."""
        if self._thread is None:
            return self._queue.empty()
        done = threading.Event()
        self._queue.put(done)
        return done.wait(seconds)

    def after_fork(self) -> None:
        """In a child: its parent's thread is not here, and writes what waited itself."""
        self._queue, self._thread, self._torn = SimpleQueue(), None, False

    def _start(self) -> None:
        # Two threads may both come here; then there are two writers, and each line is still written whole, by one of them.
        self._thread = thread = threading.Thread(target=self._run, args=(self._queue,), name="log-writer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had now, as at the end of the interpreter; the next line tries again
            self._thread = None

    def _run(self, queue: SimpleQueue[str | threading.Event]) -> None:
        lines: list[str] = []
        while True:
            asked = self._collect(queue, lines)
            lines = self._write_out(lines)
            if not lines and self.lost > self._told:
                lost = self.lost
                if not self._write_out([self._report(lost - self._told)]):
                    self._told = lost
            for event in asked:
                event.set()

    def _collect(self, queue: SimpleQueue[str | threading.Event], lines: list[str]) -> list[threading.Event]:
        """Waits until there is something to do; adds the lines that wait, and gives who asked to hear of the end."""
        asked: list[threading.Event] = []

        def take(item: str | threading.Event) -> None:
            if isinstance(item, str):
                lines.append(item)
            else:
                asked.append(item)

        if lines:
            time.sleep(AGAIN)
        else:
            take(queue.get())
            if not asked:
                time.sleep(GATHER)
        try:
            while len(lines) < self._most_lines:
                take(queue.get_nowait())
        except Empty:
            pass
        return asked

    def _write_out(self, lines: Sequence[str]) -> list[str]:
        """Writes lines, as many at a time as stay in one piece; gives those that could not be written."""
        place = 0
        while place < len(lines):
            chunk = [_encoded(lines[place])]
            size = len(chunk[0])
            while place + len(chunk) < len(lines) and size + len(line := _encoded(lines[place + len(chunk)])) < self._chunk:
                chunk.append(line)
                size += len(line)
            data = b"\n" * self._torn + b"".join(chunk)
            written = self._write(data)
            if written < len(data):
                if written:
                    self._torn = data[written - 1 : written] != b"\n"
                    written -= len(data) - size
                    for line in chunk:
                        if (written := written - len(line)) < 0:
                            break
                        place += 1
                return list(lines[place:])
            self._torn = False
            place += len(chunk)
        return []

    def _write(self, data: bytes) -> int:
        """Writes bytes; gives how many, fewer where the system refuses."""
        written = 0
        while written < len(data):
            try:
                written += os.write(self._fd, data[written:])
            except BlockingIOError:  # somebody who shares the sink has made it non-blocking
                select.select([], [self._fd], [], AGAIN)
            except OSError:
                break
        return written


class Stream:
    """Writes lines to a text stream at once, for tests and programs that set one; what it refuses is lost and counted."""

    def __init__(self, stream: Callable[[], TextIO | None]) -> None:
        self._stream = stream
        self.lost = 0
        """Lines that were lost so far."""
        _sinks.add(self)

    def write(self, line: str) -> None:
        """Writes one line, its end included."""
        try:
            stream = self._stream()
            if stream is None:  # so Python leaves standard error where it was closed at the start
                self.lost += 1
                return
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):  # ValueError: it is closed
            self.lost += 1

    def flush(self, seconds: float) -> bool:
        """Nothing: all is out."""
        return True

    def after_fork(self) -> None:
        """Nothing."""


_sinks: WeakSet[Sink | Stream] = WeakSet()


def hold_standard_descriptors() -> None:
    """Opens /dev/null in place of standard descriptors that are closed.

    Otherwise the next file that is opened takes their number, and what is written to standard error lands in the database.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            os.set_inheritable(number, True)


def lost_lines() -> int:
    """How many lines of this process were lost."""
    return sum(sink.lost for sink in list(_sinks))


def flush(seconds: float = LAST_SECONDS) -> None:
    """Waits until all lines are out, at most so long."""
    ends = time.monotonic() + seconds
    for sink in list(_sinks):
        sink.flush(max(0.0, ends - time.monotonic()))


def _is_file(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


def _encoded(line: str) -> bytes:
    return line.encode("utf-8", "replace")


def _after_fork() -> None:
    for sink in list(_sinks):
        sink.after_fork()


atexit.register(flush)
os.register_at_fork(after_in_child=_after_fork)
