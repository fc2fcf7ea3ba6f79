"""The HTTP ports of the edge: one for all, or one for applications and one for administration; with TLS where that is set."""

from __future__ import annotations

import asyncio
import resource
from typing import Any, Final

from aiohttp import web

from gateway.process.settings import Settings
from services.proxy.app import App
from services.proxy.connections import Places
from services.proxy.forwarded import TrustedProxies
from services.proxy.listener import Listener
from services.proxy.server import EdgeServer
from services.proxy.tls import EdgeCertificate

ADMIN_CONNECTIONS: Final = 256
"""Connections of a port for administration alone: applications cannot use them up."""


class Ports:
    """The listeners.

    grace: seconds that what still runs has when all connections are ended. Raises CertificateFault when the settings name a
    certificate that cannot be used.
    """

    def __init__(self, app: App, settings: Settings, *, grace: float = 1.0) -> None:
        self._tls: EdgeCertificate | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._tls = EdgeCertificate(settings.tls_cert, settings.tls_key)
        self._watching: asyncio.Task[None] | None = None
        most = _connections(settings.max_connections)
        of_one = settings.max_connections_per_address
        proxies = TrustedProxies(settings.trusted_proxies)
        self.edge = EdgeServer(app.handle, places=Places(most, of_one, is_exempt=proxies.trusts))
        """The connections of applications."""
        app.watch(self.edge)
        runner = web.ServerRunner(self.edge, shutdown_timeout=grace)
        self._listeners = [(runner, self.edge, settings.http_host, settings.http_port)]
        if settings.admin_http not in {None, "off"}:
            host, _, port = str(settings.admin_http).rpartition(":")
            places = Places(min(most, ADMIN_CONNECTIONS), min(of_one, ADMIN_CONNECTIONS // 2), is_exempt=proxies.trusts)
            apart = EdgeServer(app.handle_admin, places=places)
            self._listeners.append((web.ServerRunner(apart, shutdown_timeout=grace), apart, host, int(port)))
        self._sites: list[Listener] = []

    async def open(self) -> None:
        """Listens. Raises OSError where it cannot."""
        for runner, server, name, port in self._listeners:
            await runner.setup()
            host = None if name == "*" else name.strip("[]")
            site = Listener(runner, host, port, protocol=server, arrivals=server.arrivals, certificate=self._tls)
            await site.start()
            self._sites.append(site)
        if self._tls is not None:
            self._watching = asyncio.create_task(self._tls.watch())

    @property
    def port(self) -> int:
        """Where applications are answered."""
        return self._sites[0].port

    @property
    def admin_port(self) -> int | None:
        """Where administration alone is answered; None: nowhere."""
        return self._sites[1].port if len(self._sites) > 1 else None

    def described(self) -> dict[str, Any]:
        """Where it listens, for the log."""
        told: dict[str, Any] = {"host": self._listeners[0][2], "port": self.port, "tls": self._tls is not None}
        if self.admin_port is not None:
            told["admin_http"] = f"{self._listeners[1][2]}:{self.admin_port}"
        return told

    async def close(self) -> None:
        """Takes no more connections. Those that there are go on."""
        for site in self._sites:
            await site.stop()

    async def end(self) -> None:
        """Ends all connections."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for runner, *_ in self._listeners:
            await runner.cleanup()


def _connections(wanted: int) -> int:
    """How many connections of applications there can be: each may need another one upstream, and files need some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, (soft - 64) // 2))
