"""The compose stack on PostgreSQL with two proxies and two auths, and the scripted provider on this machine behind it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.deploy.engine import REPOSITORY, Project, free_ports
from tests.fakes.call import Call, read_ledger
from tests.suite.database import change, select

NAME = "gz-replicas"
SCALED = ("--scale", "proxy=2", "--scale", "auth=2")
MODELS = ("gpt-test", "cent")
_PRICES = [
    {"model": "gpt-test", "input": "1.00", "output": "2.00"},
    {"model": "cent", "input": "0", "output": "0", "per_request": "0.01"},
]


class Replicated:
    """A running stack. `urls` are those of its proxies, as they are now: a started container may get another port."""

    def __init__(self, project: Project, ledger: Path, database: str) -> None:
        self.project, self.ledger, self.database = project, ledger, database
        self._names = 0

    @property
    def ports(self) -> list[int]:
        """The published ports of the proxies that run."""
        found = []
        for container in self.project.containers("proxy"):
            bound = (container["NetworkSettings"]["Ports"] or {}).get("8080/tcp")
            found += [int(bound[0]["HostPort"])] if bound else []
        return found

    def names(self, *services: str) -> list[str]:
        """The containers of these services."""
        return [container["Name"].lstrip("/") for service in services for container in self.project.containers(service)]

    def token(self, dollars: float) -> str:
        """A new client token, inserted by hand."""
        self._names += 1
        secret = f"hand-inserted-token-{self._names:06d}-of-the-stack"
        change(self.database, "INSERT INTO client_tokens (name, token, max_amount) VALUES (?, ?, ?)", secret, secret, dollars)
        return secret

    def spent(self, token: str) -> int:
        """What a token has spent, in nano-dollars."""
        [row] = select(self.database, "SELECT period_spent_nanos FROM client_tokens WHERE name = ?", token)
        return int(row["period_spent_nanos"])

    def calls(self) -> list[Call]:
        """What has reached the provider."""
        return read_ledger(self.ledger)

    def is_ready(self, port: int) -> bool:
        """Whether a proxy says so."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_until_ready(self, seconds: float = 60.0) -> float:
        """Waits until both proxies are ready; gives the seconds. Raises TimeoutError."""
        began = time.monotonic()
        while len(ports := self.ports) < 2 or not all(self.is_ready(port) for port in ports):
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"not ready in {seconds} s: ports {ports}\n{self.project.compose('ps', '--all')}")
            time.sleep(0.2)
        return time.monotonic() - began

    def reconcile(self) -> str:
        """The last line of `gateway reconcile`, run where the keys are."""
        told = self.project.compose("exec", "-T", "auth", "gateway", "reconcile")
        return told.strip().splitlines()[-1]


@contextlib.contextmanager
def replicated(folder: Path, **settings: str) -> Iterator[Replicated]:
    """Brings the stack up from this checkout; takes it down with all that it kept."""
    ledger = folder / "provider-ledger.jsonl"
    ledger.touch()
    command = [sys.executable, "-m", "tests.fakes.provider", "--host", "0.0.0.0", "--ledger", str(ledger)]
    provider = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert provider.stdout is not None
    port = provider.stdout.readline().strip().rpartition(":")[2]
    first = free_ports(10)
    database_port = str(first + 9)
    mock = {
        "name": "mock",
        "kind": "openai-compatible",
        "base_url": f"http://host.docker.internal:{port}",
        "api_keys": ["sk-canary-7Qm2Zx9Lp4Vt"],
        "models": list(MODELS),
        "allow_address": True,
    }
    project = Project(
        NAME,
        "deploy/compose.postgres.yml",
        "tests/compose/overlay.yml",
        settings={
            "GATEWAY_PROVIDERS": json.dumps([mock]),
            "GATEWAY_PRICES": json.dumps(_PRICES),
            "GATEWAY_HTTP_PORT": str(first),
            "GATEWAY_HTTP_PORT_LAST": str(first + 8),
            "POSTGRES_PORT": database_port,
            **settings,
        },
    )
    try:
        seconds = project.start("--build", *SCALED)
        print(f"up after {seconds:.1f} s", flush=True)
        password = project.compose("exec", "-T", "postgres", "cat", "/run/postgres-password/password").strip()
        stack = Replicated(project, ledger, f"postgresql://gateway:{password}@127.0.0.1:{database_port}/gateway")
        stack.wait_until_ready()
        yield stack
    finally:
        project.stop("--volumes", "--remove-orphans")
        provider.terminate()
        provider.wait(10)
        provider.stdout.close()
