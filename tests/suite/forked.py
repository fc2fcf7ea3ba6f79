"""Services forked from a process that has imported them already: a start costs a tenth of what it costs a new interpreter.

For tests that kill and start a service hundreds of times. What runs is `main()` of `services.<name>.__main__` with an
environment and a log of its own; nothing of a service has run before the fork.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from services.auth import sweeper, wire

SERVICES = ("auth", "admin", "proxy")


class ForkedProcess:
    """What `subprocess.Popen` is to the tests, for a process that is another one's child.

    returncode: None while it runs. How it ended is not told to strangers: 0 stands for any end.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:  # it could not even start; its log tells why
            self.returncode = 0

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._fd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            os.close(self._fd)
            self.returncode = 0
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """By its descriptor, so that no other process of the same number is ever meant."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@lru_cache(maxsize=1)
def _parent() -> subprocess.Popen[str]:
    """The process that has imported the services; it ends with this one, when its input does."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.suite.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def start(service: str, environment: Mapping[str, str], log: Path, lease: float | None = None) -> ForkedProcess:
    """Starts a service: `auth`, `admin` or `proxy`.

    lease: the seconds that a proxy's beat may be missed, and a third of it until it is asked about a call; None: as they are.
    """
    parent = _parent()
    assert parent.stdin is not None and parent.stdout is not None
    asked = {"service": service, "environment": dict(environment), "log": str(log), "lease": lease}
    parent.stdin.write(json.dumps(asked) + "\n")
    return ForkedProcess(int(parent.stdout.readline()))


def close() -> None:
    """Ends the process that starts the others, if there is one."""
    if _parent.cache_info().currsize:
        parent = _parent()
        assert parent.stdin is not None and parent.stdout is not None
        parent.kill()  # it has nothing to finish
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()
        _parent.cache_clear()


def _serve() -> None:
    """Forks a service for each line of input, and prints its process id."""
    mains = {name: importlib.import_module(f"services.{name}.__main__").main for name in SERVICES}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    while line := sys.stdin.readline():
        asked = json.loads(line)
        if pid := os.fork():
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(asked["environment"])
        nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for descriptor, place in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, place)
        os.close(nothing)
        os.close(log)
        if asked["lease"] is not None:
            sweeper.PROXY_LEASE_SECONDS = asked["lease"]
            wire.OPEN_FOR_LONG_SECONDS = asked["lease"] / 3
        mains[asked["service"]]()
        return


if __name__ == "__main__":
    _serve()
