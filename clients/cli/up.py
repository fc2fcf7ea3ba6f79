"""`gateway up`: all services on this machine, as children of one process that keeps them running."""

from __future__ import annotations

import fcntl
import json as jsonlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clients.cli.__main__ import command
from clients.cli.output import FAULT, Failure, Json, nobody_reads, tell, tell_json
from clients.cli.places import base_url, edge, own_name, reachable
from clients.cli.ports import free_port, listeners, port_fault
from clients.cli.probe import ask as ask_http
from clients.cli.supervisor import Command, Supervisor, spawn
from gateway.process.logs import configure, get_logger
from gateway.process.settings import Settings, load_settings

START_ORDER = ("demo", "auth", "admin", "proxy")
STOP_ORDER = ("proxy", "admin", "auth", "demo")
PORT_PATIENCE = 3.0  # seconds that a port may still be held by children of a `gateway up` that was killed a moment ago
READY_PATIENCE = 60.0  # seconds after which it says who is not ready; it goes on waiting
MARGIN = 5.0  # seconds beyond lame duck and drain that a child has to end

_log = get_logger(__name__)


def up(*, json: Json = False) -> int:
    """Start all services on this machine: demo, auth, admin, proxy. Ctrl-C or SIGTERM stops them in order.

    The first start makes keys and database, and shows once a password, a client token and a request to try.
    """
    environ = dict(os.environ)
    settings = load_settings(environ)
    if settings.http_port == 0:  # chosen once, so that it stays what was told when the proxy starts again
        environ["GATEWAY_HTTP_PORT"] = str(free_port(settings.http_host))
        settings = load_settings(environ)
    configure(settings.log_level, settings.log_format, "up")
    os.umask(0o077)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_one(settings.data_dir):
        _require_free_ports(settings)
        supervisor = Supervisor(
            [Command(name, tuple(command(name))) for name in START_ORDER],
            stop_order=STOP_ORDER,
            environ=environ,
            patience=settings.lame_duck + settings.drain + MARGIN,
        )
        with supervisor.signals_taken():
            try:
                code = _run(supervisor, settings, as_json=json)
            finally:
                stopped = supervisor.stop()
    return code or stopped


def _run(supervisor: Supervisor, settings: Settings, *, as_json: bool) -> int:
    """Prepares, starts, tells and keeps running until it is told to stop. Gives an exit code where it could not begin."""
    prepared = _aside(supervisor, [*_cli("init"), "--no-secrets", "--json"], capture=True)
    if prepared.returncode:
        return prepared.returncode if prepared.returncode > 0 else FAULT
    if supervisor.told_to_stop:
        return 0
    supervisor.start()
    _wait_until_ready(supervisor, settings)
    if not supervisor.told_to_stop:
        try:
            _tell(supervisor, settings, jsonlib.loads(prepared.stdout or b"{}"), as_json=as_json)
        except BrokenPipeError:  # nobody reads: the services run all the same, and the secrets wait for somebody who does
            nobody_reads()
            _log.warning("nobody_reads_standard_output")
    while not supervisor.told_to_stop:
        supervisor.turn(3600.0)
    return 0


def _tell(supervisor: Supervisor, settings: Settings, prepared: dict[str, Any], *, as_json: bool) -> None:
    """Says where it listens; on the first start, the secrets; else how to make a token.

    `gateway init` makes the secrets and writes them to our standard output itself, so they pass through no other process, and
    are made only when there is somebody to tell.
    """
    url = base_url(settings)
    if as_json:
        tell_json({"listening": url, "openai_base_url": f"{url}/v1"})
    else:
        tell(f"Gateway Zero listens on {url}")
    if not prepared.get("secrets_told", False):
        told = _aside(supervisor, [*_cli("init"), *(["--json"] if as_json else [])], capture=False)
        if told.returncode:
            _log.error("no_first_secrets", remedy="`gateway init` makes them", exit_code=told.returncode)
    elif not as_json:
        tell(f"Make a client token: {own_name()} token create --name app --max-amount 5")


def _cli(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", "clients.cli", name]


def _aside(supervisor: Supervisor, arguments: Sequence[str], *, capture: bool) -> subprocess.CompletedProcess[bytes]:
    """Runs a short command to its end while the children are looked after. What it prints must fit into a pipe (64 KiB)."""
    process = spawn(arguments, supervisor.environ, stdout=subprocess.PIPE if capture else None)
    while process.poll() is None:
        supervisor.turn(1.0)
    output = process.stdout.read() if process.stdout else b""
    if process.stdout:
        process.stdout.close()
    return subprocess.CompletedProcess(list(arguments), process.returncode, output)


def _wait_until_ready(supervisor: Supervisor, settings: Settings) -> None:
    """Returns when all four answer, or when it is told to stop."""
    waiting: dict[str, Callable[[], bool]] = {
        "demo": lambda: ask_http("demo", settings.demo_listen, 1.0).ready,
        "auth": lambda: _takes_connections(settings.auth_listen),
        "admin": lambda: _takes_connections(settings.admin_listen),
        # Its readiness says that auth answers, too.
        "proxy": lambda: ask_http("proxy", edge(settings), 1.0, tls=settings.tls_cert is not None).ready,
    }
    complaint = time.monotonic() + READY_PATIENCE
    while waiting and not supervisor.told_to_stop:
        supervisor.turn(0.05)
        waiting = {name: ready for name, ready in waiting.items() if not ready()}
        if waiting and time.monotonic() >= complaint:
            _log.warning("not_ready", children=sorted(waiting), after_s=READY_PATIENCE)
            complaint = float("inf")


def _takes_connections(listen: str) -> bool:
    try:
        with socket.create_connection(reachable(listen), timeout=0.5):
            return True
    except OSError:
        return False


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Holds the data directory for this `gateway up`. Raises Failure when another one has it."""
    # Not for children to inherit, so that it is free the moment this process is gone, whatever becomes of them.
    descriptor = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            raise Failure(
                f"another `gateway up` (process {holder}) runs on {data_dir}: stop it, or set GATEWAY_DATA_DIR",
                reason="already_running",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _require_free_ports(settings: Settings) -> None:
    """Raises Failure, naming all of them, when something else listens where our services will."""
    deadline = time.monotonic() + PORT_PATIENCE
    while taken := {variable: listen for variable, listen in listeners(settings).items() if port_fault(listen)}:
        if time.monotonic() >= deadline:
            which = ", ".join(f"{listen} ({variable})" for variable, listen in taken.items())
            raise Failure(
                f"cannot listen on {which}: in use by another program; stop it or choose another port", reason="port_in_use"
            )
        time.sleep(0.1)
