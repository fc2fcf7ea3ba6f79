"""The ports that the services will listen on, and whether they can."""

from __future__ import annotations

import socket

from clients.cli.output import USAGE, Failure
from clients.cli.places import place
from gateway.process.settings import Settings


def listeners(settings: Settings) -> dict[str, str]:
    """Where the services of this machine listen, `host:port` by the variable that sets it."""
    wanted = {
        "GATEWAY_HTTP_PORT": f"{settings.http_host}:{settings.http_port}",
        "GATEWAY_ADMIN_HTTP": None if settings.admin_http == "off" else settings.admin_http,
        "GATEWAY_AUTH_LISTEN": settings.auth_listen,
        "GATEWAY_ADMIN_LISTEN": settings.admin_listen,
        "GATEWAY_DEMO_LISTEN": settings.demo_listen,
        "GATEWAY_AUTH_METRICS_ADDRESS": settings.auth_metrics_address,
        "GATEWAY_ADMIN_METRICS_ADDRESS": settings.admin_metrics_address,
        "GATEWAY_PROXY_METRICS_ADDRESS": settings.proxy_metrics_address,
    }
    return {variable: listen for variable, listen in wanted.items() if listen is not None}


def free_port(host: str) -> int:
    """A port of this address that nobody listens on at this moment."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind, protocol) as candidate:
        candidate.bind(address)
        return int(candidate.getsockname()[1])


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
