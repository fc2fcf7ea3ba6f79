"""Asks a service over HTTP whether it is ready, with next to nothing loaded: health checks run every few seconds."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import NamedTuple

from clients.cli.places import reachable

TIMEOUT = 3.0  # seconds that a service has to answer

_ADDRESSES = {
    "auth": "GATEWAY_AUTH_METRICS_ADDRESS",
    "admin": "GATEWAY_ADMIN_METRICS_ADDRESS",
    "proxy": "GATEWAY_PROXY_METRICS_ADDRESS",
    "demo": "GATEWAY_DEMO_LISTEN",
}
_REQUEST = b"GET /readyz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"


class Answer(NamedTuple):
    """What a service says of itself."""

    service: str
    ready: bool
    detail: str
    answered: bool = True
    """Whether it is the service that answered, ready or not."""


def ask_by_environment(service: str, environ: Mapping[str, str]) -> Answer | None:
    """What a service says at the address that a variable gives; None: none does, and only all the settings can tell.

    Reading all the settings costs 0.6 s of CPU, and this 0.05.
    """
    listen = environ.get(_ADDRESSES[service], "").strip()
    try:
        reachable(listen)
    except ValueError:
        return None
    return ask(service, listen, TIMEOUT)


def ask(service: str, listen: str, timeout: float, *, tls: bool = False) -> Answer:
    """What the service says that listens for HTTP at `host:port`.

    tls: over https, whatever the certificate: who looks from the same machine does not know under which name it was made.
    """
    host, port = reachable(listen)
    try:
        with socket.create_connection((host, port), timeout=timeout) as plain, _secured(plain, tls=tls) as connection:
            connection.sendall(_REQUEST)
            with connection.makefile("rb") as reader:
                status = reader.readline(1024).decode("ascii", "replace").split()
    except OSError as fault:
        return Answer(
            service, ready=False, detail=f"no answer at {host}:{port}: {fault or type(fault).__name__}", answered=False
        )
    code = status[1] if len(status) > 1 and status[0].startswith("HTTP/") else "?"
    return Answer(service, ready=code == "200", detail=f"HTTP {code} at {host}:{port}", answered=code in {"200", "503"})


def _secured(connection: socket.socket, *, tls: bool) -> socket.socket:
    """The connection, under TLS where it is asked for. Raises OSError."""
    if not tls:
        return connection
    import ssl  # noqa: PLC0415 - costs as much as all the rest, and is rarely needed

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection)
