"""The ports that the services will listen on, and whether they can."""

from __future__ import annotations

import socket

from clients.cli.output import USAGE, Failure
from clients.cli.places import place
from gateway.process.settings import Settings


def listeners(settings: Settings) -> dict[str, str]:
    """Where the services of this machine listen, `host:port` by the variable that sets it."""
    return {
        "GATEWAY_HTTP_PORT": f"{settings.http_host}:{settings.http_port}",
        "GATEWAY_AUTH_LISTEN": settings.auth_listen,
        "GATEWAY_ADMIN_LISTEN": settings.admin_listen,
        "GATEWAY_DEMO_LISTEN": settings.demo_listen,
    }


def port_fault(listen: str) -> str | None:
    """Why nobody can listen at `host:port`; None: it is free.

    Raises Failure for a host that is not this machine's.
    """
    host, port = place(listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as fault:
        raise Failure(f"{listen}: {fault.strerror or fault}", code=USAGE, reason="address") from None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as candidate:
        # As servers do: what is left of connections that were closed does not count.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(address)
            candidate.listen(1)
        except OSError as fault:
            return fault.strerror or str(fault)
    return None
