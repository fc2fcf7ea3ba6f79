"""Docker Compose as a program calls it: one project of its own on a free port, and what its containers are like.

Standard library only: the build machine runs it with any Python.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy of the environment is on the way to ourselves
PATIENCE = 180.0  # seconds that a stack may take to be healthy, images not counted
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Refused(Exception):
    """The stack did not do what it should."""


def has_engine() -> bool:
    """Whether a Docker engine answers, and Compose is there."""
    if shutil.which("docker") is None:
        return False
    return all(
        subprocess.run(["docker", *command], capture_output=True, check=False, timeout=60).returncode == 0
        for command in (["info"], ["compose", "version"])
    )


class Project:
    """A Compose project of this checkout, with the settings of nobody's `.env`.

    files: Compose files beside docker-compose.yml. first_port: the port of its (first) proxy.
    """

    def __init__(self, name: str, *files: str, settings: dict[str, str] | None = None) -> None:
        self.name = name
        self.first_port = free_ports(2)
        self._files = ["docker-compose.yml", *files]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("GATEWAY_", "OPENAI_", "COMPOSE_"))}
        self._environment = {
            **inherited,
            "GATEWAY_IMAGE": f"{name}-image",
            "GATEWAY_HTTP_PORT": str(self.first_port),
            "GATEWAY_HTTP_PORT_LAST": str(self.first_port + 1),
            **(settings or {}),
        }

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Runs `docker compose` and gives its standard output. Raises Refused with what it said when it fails."""
        return _COLOURS.sub("", self.compose_bytes(*arguments, check=check).decode("utf-8", "replace"))

    def compose_bytes(self, *arguments: str, check: bool = True, stdin: bytes = b"") -> bytes:
        """The same with bytes; `stdin` is its standard input."""
        files = [word for file in self._files for word in ("-f", file)]
        command = ["docker", "compose", "--ansi", "never", "--env-file", os.devnull, "-p", self.name, *files, *arguments]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self._environment,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=900,
        )
        if check and done.returncode:
            told = (done.stdout[-2000:] + done.stderr[-4000:]).decode("utf-8", "replace")
            raise Refused(f"docker compose {' '.join(arguments)}: exit {done.returncode}\n{told}")
        return done.stdout

    def start(self, *options: str) -> float:
        """Brings everything up and gives the seconds until all of it is healthy. Raises Refused when that takes too long."""
        began = time.monotonic()
        try:
            self.compose("up", "--detach", *options)
        except Refused as refused:
            raise Refused(f"{refused}\n{self.compose('logs', '--tail', '20', check=False)}") from None
        ends = time.monotonic() + PATIENCE
        while ill := [container for container in self.containers() if not _is_well(container)]:
            if time.monotonic() > ends:
                names = {container["Name"]: container["State"] for container in ill}
                raise Refused(f"not healthy: {json.dumps(names)}\n{self.compose('logs', '--tail', '20', check=False)}")
            time.sleep(0.5)
        return time.monotonic() - began

    def stop(self, *options: str) -> None:
        """Takes the containers down; with `--volumes` all that they kept."""
        self.compose("down", "--timeout", "60", *options)

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """What `docker inspect` says of the project's containers, those of one-shots included, in order of their names."""
        ids = self.compose("ps", "--all", "--quiet", *([service] if service else [])).split()
        if not ids:
            return []
        told = subprocess.run(["docker", "inspect", *ids], capture_output=True, check=True, timeout=60).stdout
        found: list[dict[str, Any]] = json.loads(told)
        return sorted(found, key=lambda container: str(container["Name"]))

    def first_secrets(self) -> tuple[str, str]:
        """The first token and the request to try, as `docker compose logs init` shows them."""
        shown = self.compose("logs", "--no-log-prefix", "init")
        token = re.search(r"client token +(\S+)", shown)
        curl = re.search(r"^curl .*$", shown, re.MULTILINE)
        if token is None or curl is None:
            raise Refused(f"`docker compose logs init` shows no token or no request:\n{shown}")
        return token[1], curl[0]


def ask(port: int, path: str, token: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """One request to a proxy of this machine: the status and the whole body of the answer; status 0: none came."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with _DIRECT.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)


def chat(port: int, token: str, *, stream: bool = False, words: str = "Hello") -> tuple[int, str]:
    """The documented request to the demo provider."""
    body = {"model": "demo", "messages": [{"role": "user", "content": words}], "stream": stream}
    return ask(port, "/v1/chat/completions", token, body)


def free_ports(count: int) -> int:
    """The first of as many consecutive ports as asked for that nobody listens on."""
    for first in range(18_000 + os.getpid() % 400 * 2, 19_000, count):  # not where another check on this machine begins
        try:
            for port in range(first, first + count):
                with socket.socket() as candidate:
                    candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    candidate.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise Refused("no ports in a row are free")


def _is_well(container: dict[str, Any]) -> bool:
    """Whether a container does its work, or has done it."""
    state = container["State"]
    if state["Status"] == "exited" and container["HostConfig"]["RestartPolicy"]["Name"] in {"no", ""}:
        return bool(state["ExitCode"] == 0)
    return bool(state["Status"] == "running" and state.get("Health", {}).get("Status") == "healthy")
