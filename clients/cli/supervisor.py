"""Keeps child processes running and stops them in order: what `gateway up` does after the start.

One thread, no event loop, signals through a wake-up pipe: it forks while it runs, and with several threads that is not safe.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from gateway.process.logs import get_logger

MAX_DEATHS = 5
WINDOW = 60.0  # seconds; the death that makes it MAX_DEATHS within this time is the last
FIRST_PAUSE = 0.2  # seconds before a dead child starts again; doubled with each death within the window
LONGEST_PAUSE = 1.0
CUT_PAUSE = 1.0  # seconds that a child has after a signal that cuts, before the next harder one

_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """A child to keep running."""

    name: str
    arguments: tuple[str, ...]


@dataclass(slots=True)
class _Child:
    command: Command
    process: subprocess.Popen[bytes] | None = None
    due: float | None = None
    """When it is started again; None: it runs, or is not wanted any more."""
    deaths: deque[float] = field(default_factory=deque)
    wanted: bool = True

    @property
    def alive(self) -> bool:
        """Whether its process has not been seen to end."""
        return self.process is not None


class Supervisor:
    """Starts commands, starts again those that die, stops them in order.

    commands: in the order in which they start; they stop in `stop_order` (names).
    environ: the children's environment; kept as `environ`.
    patience: seconds that a child has to end after SIGTERM before it is killed.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        *,
        stop_order: Sequence[str],
        environ: Mapping[str, str],
        patience: float,
    ) -> None:
        self._children = {command.name: _Child(command) for command in commands}
        self._stop_order = tuple(stop_order)
        self.environ = dict(environ)
        self._patience = patience
        self._signals = 0
        self._wake_read = -1
        self._gave_up = False
        self._killed = False

    @contextmanager
    def signals_taken(self) -> Iterator[None]:
        """Takes over the signals of this process until the block ends."""
        self._wake_read, wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(wake_write, False)
        before_fd = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        before = {
            number: signal.signal(number, self._on_stop)
            for number in _STOP_SIGNALS
            # `nohup` had SIGHUP ignored: that stays so.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)
            os.close(self._wake_read)
            os.close(wake_write)

    @property
    def gave_up(self) -> bool:
        """Whether a child died too often."""
        return self._gave_up

    @property
    def told_to_stop(self) -> bool:
        """Whether a signal asked for the end, or a child died too often."""
        return self._signals > 0 or self._gave_up

    def start(self) -> None:
        """Starts all children."""
        for child in self._children.values():
            self._launch(child)

    def turn(self, timeout: float) -> None:
        """Sees to the children once: waits for a signal, at most `timeout` seconds, notices who died, starts who is due."""
        due = [child.due - time.monotonic() for child in self._children.values() if child.due is not None]
        self._sleep(max(0.0, min([timeout, *due])))
        for child in self._children.values():
            self._reap(child)
            if child.due is not None and child.due <= time.monotonic() and not self._gave_up:
                self._launch(child)

    def stop(self) -> int:
        """Stops all children in order. Gives the exit code: 0 when it was asked for and nobody had to be killed, else 1."""
        for name in self._stop_order:
            child = self._children[name]
            child.wanted, child.due = False, None
            self._signal(child, signal.SIGTERM)
            deadline = time.monotonic() + self._patience
            while child.alive and self._signals < 2:
                if time.monotonic() >= deadline:
                    _log.error("child_killed", child=name, reason="it did not end in time", waited_s=self._patience)
                    self._kill(child)
                    break
                self.turn(min(1.0, deadline - time.monotonic()))
        self._cut()
        return 1 if self._gave_up or self._killed else 0

    def _cut(self) -> None:
        """Ends what still runs: by a signal, by another one that cuts, by force."""
        for child in self._children.values():
            child.wanted, child.due = False, None
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            left = [child for child in self._children.values() if child.alive]
            for child in left:
                if number == signal.SIGKILL:
                    self._kill(child)
                else:
                    self._signal(child, number)
            deadline = time.monotonic() + CUT_PAUSE
            while any(child.alive for child in left) and time.monotonic() < deadline:
                self.turn(deadline - time.monotonic())

    def _launch(self, child: _Child) -> None:
        child.due = None
        child.process = spawn(child.command.arguments, self.environ)

    def _reap(self, child: _Child) -> None:
        """Notices a child that ended; decides whether and when it starts again."""
        if child.process is None:
            return
        code = child.process.poll()
        if code is None:
            return
        child.process = None
        if not child.wanted:
            return
        now = time.monotonic()
        child.deaths.append(now)
        while child.deaths[0] <= now - WINDOW:
            child.deaths.popleft()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if len(child.deaths) >= MAX_DEATHS:
            self._gave_up = True
            _log.error("giving_up", child=child.command.name, how=how, deaths=len(child.deaths), within_s=WINDOW)
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (len(child.deaths) - 1))
        _log.warning("child_died", child=child.command.name, how=how, starts_again_in_s=pause)
        child.due = now + pause

    def _sleep(self, seconds: float) -> None:
        """Waits for a signal or the time, whichever comes first."""
        if select.select([self._wake_read], [], [], seconds)[0]:
            os.read(self._wake_read, 512)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    @staticmethod
    def _signal(child: _Child, number: signal.Signals) -> None:
        if child.process is not None:
            child.process.send_signal(number)

    def _kill(self, child: _Child) -> None:
        if child.process is not None:
            self._killed = True
            child.process.kill()
            child.process.wait()
            child.process = None


def spawn(arguments: Sequence[str], environ: Mapping[str, str], *, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Starts a child in a session of its own: Ctrl-C in the terminal reaches this process alone. It dies with this process.

    stdout: as for Popen; None: where this process writes.
    """
    return subprocess.Popen(  # noqa: S603 - the command line is our own
        list(arguments),
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        start_new_session=True,
        preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - there is one thread only
    )


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child runs first, so that the kernel kills it when its parent is gone, however that went.

    Linux only: None elsewhere, where a killed `gateway up` leaves its children running.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)  # loaded here: after the fork there should be as little to do as can be

    def arrange() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it went between the fork and the line above
            os._exit(1)

    return arrange
