"""`gateway up` as people start it: the first words, later ones, restarts, refusals, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from tests.clients.conftest import Installation
from tests.suite.stack import REPOSITORY, wait_for


class Up:
    """A running `gateway up`, without a terminal."""

    def __init__(self, stack: Installation, *arguments: str) -> None:
        self.stack = stack
        self.lines: list[str] = []
        self.log = (stack.directory / "up.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clients.cli", "up", *arguments],
            cwd=REPOSITORY,
            env=stack.environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines += iter(self.process.stdout.readline, "")

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for_line(self, start: str) -> str:
        """The first line that begins so."""
        wait_for(start, lambda: self.process.poll() is not None or any(line.startswith(start) for line in self.lines), 60)
        found = [line for line in self.lines if line.startswith(start)]
        assert found, f"no line {start!r}\n{self.text}\n{self.errors()}"
        return found[0].strip()

    def errors(self) -> str:
        return (self.stack.directory / "up.log").read_text()

    def child(self, service: str) -> int:
        """The process id of a service."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # one that has just died has no command line any more
                if f"services.{service}" in child.cmdline():
                    return child.pid
        return 0

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self, seconds: float = 30) -> int:
        code = self.process.wait(seconds)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return code


@pytest.fixture
def start(fresh: Installation) -> Iterator[object]:
    started: list[Up] = []

    def up(*arguments: str) -> Up:
        started.append(Up(fresh, *arguments))
        return started[-1]

    yield up
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.wait()


def free(stack: Installation) -> bool:
    """Whether nobody listens on any of the ports."""
    for port in (stack.http_port, stack.auth_port, stack.admin_port, stack.demo_port):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return False
    return True


def test_the_first_start_shows_what_works_and_later_ones_never_a_secret(start, fresh: Installation) -> None:
    first = start()
    curl = first.wait_for_line("curl ")
    done = subprocess.run([*shlex.split(curl), "-f"], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "demo provider" in answer["choices"][0]["message"]["content"]
    export = first.wait_for_line("export OPENAI_BASE_URL=")
    assert f"http://127.0.0.1:{fresh.http_port}/v1" in export
    secret = re.search(r"sk-gz-\w{46}", export)
    password = re.search(r"([a-z0-9]{5}-){3}[a-z0-9]{5}", first.text)
    assert secret and password
    assert first.end() == 0
    wait_for("the ports to be free", lambda: free(fresh), 5)
    again = start()
    again.wait_for_line("Make a client token")
    assert "sk-gz-" not in again.text
    assert f"http://127.0.0.1:{fresh.http_port}" in again.text
    assert again.end(signal.SIGINT) == 0
    assert fresh.gateway("reconcile").stdout == "0 differences\n"
    for path in (path for path in fresh.directory.rglob("*") if path.is_file()):
        for canary in (secret[0].encode(), password[0].encode()):
            assert canary not in path.read_bytes(), path


def test_in_json_it_tells_the_same_line_by_line(start, fresh: Installation) -> None:
    up = start("--json")
    up.wait_for_line('{"made"')
    first, second = (json.loads(line) for line in up.lines)
    assert first["listening"] == f"http://127.0.0.1:{fresh.http_port}"
    assert second["token"]["token"].startswith("sk-gz-")
    assert second["administrator"]["one_time_password"]
    # It forks while it runs, which is safe for a process of one thread alone.
    assert psutil.Process(up.process.pid).num_threads() == 1
    assert up.end() == 0


def test_killed_services_are_back_within_seconds_and_the_same_up_goes_on(start, fresh: Installation) -> None:
    up = start()
    up.wait_for_line("curl ")
    for service in ("proxy", "auth", "admin", "demo"):
        pid = up.child(service)
        os.kill(pid, signal.SIGKILL)
        wait_for(f"{service} to be back", lambda pid=pid, service=service: up.child(service) not in (0, pid), 5)
    wait_for("the edge to be ready", lambda: fresh.status("/readyz") == 200, 20)
    assert up.end() == 0


def test_killed_itself_it_leaves_nobody_behind_and_starts_again_at_once(start, fresh: Installation) -> None:
    up = start()
    up.wait_for_line("curl ")
    children = [up.child(service) for service in ("proxy", "auth", "admin", "demo")]
    assert all(children)
    up.process.kill()
    up.wait()
    again = start()
    again.wait_for_line("Make a client token")
    assert not any(psutil.pid_exists(pid) for pid in children)
    assert again.end() == 0


def test_a_second_one_on_the_same_data_is_refused(start, fresh: Installation) -> None:
    up = start()
    up.wait_for_line("curl ")
    other = {"GATEWAY_HTTP_PORT": "1", "GATEWAY_AUTH_ADDRESS": "127.0.0.1:2", "GATEWAY_ADMIN_ADDRESS": "127.0.0.1:3"}
    kept = dict(fresh.environment)
    fresh.environment |= other
    refused = fresh.process("up", check=False)
    fresh.environment = kept
    assert refused.returncode == 1
    assert str(up.process.pid) in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert up.end() == 0


def test_a_port_in_use_is_one_line_and_nothing_is_made(fresh: Installation) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", fresh.http_port))
        other.listen()
        refused = fresh.process("up", check=False)
    assert refused.returncode == 1
    assert f"127.0.0.1:{fresh.http_port}" in refused.stderr
    assert "GATEWAY_HTTP_PORT" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert refused.stdout == ""
    assert not fresh.database.exists()
    assert free(fresh)


def test_wrong_settings_are_one_line_and_nothing_starts(fresh: Installation) -> None:
    fresh.environment["GATEWAY_DRAIN"] = "long"
    refused = fresh.process("up", check=False)
    assert refused.returncode == 2
    assert "GATEWAY_DRAIN" in refused.stderr
    assert not fresh.data.exists()


def test_an_init_that_fails_ends_it_with_that_reason(fresh: Installation) -> None:
    fresh.gateway("init")
    (fresh.data / "keys" / "token.key").unlink()
    refused = fresh.process("up", check=False)
    assert refused.returncode == 1
    assert "restore it from a backup" in refused.stderr
    assert free(fresh)
