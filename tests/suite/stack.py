"""The suite as processes on free ports: start, stop and kill them one by one. The tests and the benchmarks use it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from tests.fakes.call import Call, read_ledger
from tests.suite import forked
from tests.suite.database import Database, change, select

REPOSITORY = Path(__file__).resolve().parents[2]


def _ports() -> Iterator[int]:
    """Ports below those that the system gives to outgoing connections, each worker's apart from the others'."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 12_000 + worker % 4 * 5_000
    yield from itertools.cycle(range(first + os.getpid() % 4_000, first + 5_000))


_next_ports = _ports()


def free_port() -> int:
    """A port nobody listens on, and that nobody else of these tests is given soon.

    A process takes its port only when it starts. A port drawn by chance was given to two of them now and then.
    """
    for port in _next_ports:
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def wait_for(what: str, check: object, seconds: float = 20.0, pause: float = 0.02) -> None:
    """Returns as soon as `check()` is true. Raises TimeoutError that names what was waited for."""
    assert callable(check)
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain: {what}")
        time.sleep(pause)


class Stack:
    """One installation in `directory`: `data/`, `gateway.toml`, `logs/`, and the processes that were started.

    config: the text of gateway.toml. settings: further GATEWAY_* variables, and keys that the configuration names.
    replicas: of auth and of proxy. They are called `auth`, `auth-2` and so on, each with ports of its own.
    is_forked: auth, admin and proxy are forked from a process that has imported them, for tests that start them often.
    lease: where they are, the seconds that a proxy's beat may be missed, for tests that cannot wait for a minute.
    """

    def __init__(
        self,
        directory: Path,
        config: str,
        settings: Mapping[str, str] | None = None,
        *,
        replicas: int = 1,
        is_forked: bool = False,
        lease: float | None = None,
    ) -> None:
        self.directory, self.data, self.logs = directory, directory / "data", directory / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.http_port, self.auth_port, self.admin_port, self.demo_port = (free_port() for _ in range(4))
        self.ports = {"auth": self.auth_port, "proxy": self.http_port, "admin": self.admin_port, "demo": self.demo_port}
        for number in range(2, replicas + 1):
            self.ports |= {f"auth-{number}": free_port(), f"proxy-{number}": free_port()}
        self.probe_ports = {name: free_port() for name in self.ports if name.startswith("auth")}
        (directory / "gateway.toml").write_text(config)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OPENAI_"))}
        self.environment = clean | {
            "GATEWAY_DATA_DIR": str(self.data),
            "GATEWAY_CONFIG": str(directory / "gateway.toml"),
            "GATEWAY_HTTP_PORT": str(self.http_port),
            "GATEWAY_AUTH_ADDRESS": ",".join(f"127.0.0.1:{port}" for name, port in self.ports.items() if "auth" in name),
            "GATEWAY_ADMIN_ADDRESS": f"127.0.0.1:{self.admin_port}",
            "GATEWAY_DEMO_ADDRESS": f"127.0.0.1:{self.demo_port}",
            "GATEWAY_LOG_FORMAT": "json",
            "PYTHONUNBUFFERED": "1",
            **(settings or {}),
        }
        self.own: dict[str, dict[str, str]] = {}  # variables of single processes, by their name
        self.processes: dict[str, subprocess.Popen[bytes] | forked.ForkedProcess] = {}
        self.sinks: dict[str, int] = {}  # file descriptors for the logs of single processes, instead of files
        self._is_forked, self._lease = is_forked, lease
        self._starts = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/v1"

    @property
    def database(self) -> Database:
        """The file of the database, or the URL where it is not in one."""
        return self.environment.get("GATEWAY_DATABASE_URL") or self.data / "gateway.db"

    def _environment_of(self, name: str) -> dict[str, str]:
        """What a process gets: a replica has ports of its own."""
        own = {}
        if name in self.probe_ports:
            own = {
                "GATEWAY_AUTH_LISTEN": f"127.0.0.1:{self.ports[name]}",
                "GATEWAY_AUTH_METRICS_ADDRESS": f"127.0.0.1:{self.probe_ports[name]}",
            }
        elif name.startswith("proxy-"):
            own = {"GATEWAY_HTTP_PORT": str(self.ports[name])}
        return self.environment | own | self.own.get(name, {})

    def gateway(self, *arguments: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the `gateway` command in this installation. Raises AssertionError with its output when it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "clients.cli", *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"gateway {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *services: str) -> None:
        """Starts services as `python -m services.<name>`, replicas as `<name>-<number>`; does not wait for them."""
        for service in services:
            assert service not in self.processes or self.processes[service].poll() is not None, f"{service} is running"
            self._starts += 1
            path = self.logs / f"{service}-{self._starts}.log"
            if self._is_forked:
                kind, environment = service.partition("-")[0], self._environment_of(service)
                self.processes[service] = forked.start(kind, environment, path, self._lease)
                continue
            with path.open("wb") as log:
                self.processes[service] = subprocess.Popen(
                    [sys.executable, "-m", f"services.{service.partition('-')[0]}"],
                    cwd=REPOSITORY,
                    env=self._environment_of(service),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=self.sinks.get(service, log),
                )

    def kill(self, service: str) -> None:
        """kill -9: what the process had in memory is gone."""
        process = self.processes.pop(service)
        process.kill()
        process.wait()

    def pause(self, service: str) -> None:
        """SIGSTOP: its connections stand, and nothing comes."""
        self.processes[service].send_signal(signal.SIGSTOP)

    def go_on(self, service: str) -> None:
        """SIGCONT."""
        self.processes[service].send_signal(signal.SIGCONT)

    def stop(self, service: str, seconds: float = 30.0) -> int:
        """SIGTERM, and its exit code."""
        process = self.processes.pop(service)
        process.send_signal(signal.SIGTERM)
        return process.wait(seconds)

    @staticmethod
    def listens(port: int) -> bool:
        """Whether somebody takes connections on a port of this machine."""
        with contextlib.closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def status(self, path: str, port: int = 0) -> int:
        """The HTTP status of a GET on the edge, or on this port; 0: nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.http_port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def is_ready(self, name: str) -> bool:
        """Whether an auth or a proxy says so of itself."""
        return self.status("/readyz", self.probe_ports.get(name) or self.ports[name]) == 200

    def wait_until_up(self, *names: str, seconds: float = 30.0) -> None:
        """Waits until each of these says that it is ready. Raises with the logs when one has died or time is up."""
        deadline = time.monotonic() + seconds
        while not all(self.is_ready(name) for name in names):
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not dead, f"{dead} died\n{self.log_tails()}"
            assert time.monotonic() < deadline, f"{names} not ready in {seconds} s\n{self.log_tails()}"
            time.sleep(0.05)

    def wait_until_ready(self, seconds: float = 30.0) -> None:
        """Waits until every edge says that it takes calls. Raises as `wait_until_up` does."""
        edges = [name for name in self.processes if name.startswith("proxy")] or ["proxy"]
        self.wait_until_up(*edges, seconds=seconds)

    def log_tails(self, length: int = 2000) -> str:
        """The ends of the four logs that were written to last, for a person."""
        latest = sorted(self.logs.iterdir(), key=lambda path: path.stat().st_mtime)[-4:]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-length:]}" for path in latest)

    def insert_token(self, token: str, **columns: object) -> None:
        """Writes a client token into the database by hand, as a person with sqlite3 or psql does."""
        row = {"name": token, "token": token, **columns}
        names, marks = ", ".join(row), ", ".join("?" for _ in row)
        change(self.database, f"INSERT INTO client_tokens ({names}) VALUES ({marks})", *row.values())

    def query(self, sql: str, *parameters: object) -> list[dict[str, object]]:
        """Reads the database as it is on disk."""
        return select(self.database, sql, *parameters)

    def close(self) -> None:
        for service in list(self.processes):
            process = self.processes.pop(service)
            process.kill()
            process.wait()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class ProviderProcess:
    """The scripted provider as a process of its own, with its ledger in a file."""

    def __init__(self, directory: Path) -> None:
        self.ledger = directory / "provider-ledger.jsonl"
        self.ledger.touch()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.provider", "--ledger", str(self.ledger)],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()
        assert self.base_url, "the scripted provider did not start"

    def calls(self) -> list[Call]:
        """What has reached it so far."""
        return read_ledger(self.ledger)

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.terminate()
        self._process.wait(10)
        self._process.stdout.close()


def configuration(base_url: str, *, models: str = "*", prices: str = "", name: str = "mock") -> str:
    """A gateway.toml with the scripted provider for these models, and `[[prices]]` as given."""
    provider = {"name": name, "kind": "openai-compatible", "base_url": base_url, "api_keys": ["sk-canary-7Qm2Zx9Lp4Vt"]}
    lines = [f"{key} = {json.dumps(value)}" for key, value in provider.items()]
    return "\n".join(["[[providers]]", *lines, f"models = {json.dumps(models.split(','))}", prices, ""])


def price(model: str, **rates: str | int) -> str:
    """One row of `[[prices]]`: rates in quotes, and whole numbers such as `max_output_tokens`."""
    return "\n".join(
        ["[[prices]]", f"model = {json.dumps(model)}", *(f"{unit} = {json.dumps(rate)}" for unit, rate in rates.items()), ""]
    )
