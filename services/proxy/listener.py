"""The listening sockets of one HTTP port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from aiohttp import web

from gateway.process.logs import get_logger
from services.proxy.arrivals import Arrivals
from services.proxy.connections import Place
from services.proxy.protocol import KEEPALIVE
from services.proxy.tls import HANDSHAKE_TIME, SHUTDOWN_TIME, EdgeCertificate

BACKLOG: Final = 4096
"""Connections that the system keeps until they are accepted; it may have a lower limit itself."""
ACCEPTS: Final = 16
"""Connections that are accepted in one turn of the loop, so that thousands at once stop nobody."""

_log = get_logger(__name__)


class Listener(web.BaseSite):
    """Accepts connections and gives them to the arrivals; with a certificate, has the loop secure each of them first.

    host: None is every address. protocol: makes one for a connection that has its place.
    """

    def __init__(
        self,
        runner: web.ServerRunner,
        host: str | None,
        port: int,
        *,
        protocol: Callable[[Place], asyncio.BaseProtocol],
        arrivals: Arrivals,
        certificate: EdgeCertificate | None,
    ) -> None:
        super().__init__(runner)
        self._host = host
        self.port = port
        self._protocol = protocol
        self._arrivals = arrivals
        self._certificate = certificate
        self._sockets: list[socket.socket] = []

    @property
    def name(self) -> str:
        """Where it is, as a URL."""
        return f"{'http' if self._certificate is None else 'https'}://{self._host or '*'}:{self.port}"

    async def start(self) -> None:
        """Listens. Raises OSError where it cannot."""
        await super().start()
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
            listening.setblocking(False)
            self._sockets.append(listening)
            self.port = listening.getsockname()[1]
            loop.add_reader(listening.fileno(), self._accept, listening)

    async def stop(self) -> None:
        """Takes no more connections. Those that there are go on."""
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
            listening.close()
        self._sockets.clear()
        await super().stop()

    def _accept(self, listening: socket.socket) -> None:
        patience = KEEPALIVE if self._certificate is None else HANDSHAKE_TIME
        for _ in range(ACCEPTS):
            try:
                connection, address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:  # no file descriptor is left: those that wait are taken a moment later
                _log.error("cannot_accept", error=error.strerror)
                self._pause(listening, 1.0)
                return
            self._arrivals.take(connection, address[0], self._serve, patience)

    def _pause(self, listening: socket.socket, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening.fileno())
        loop.call_later(seconds, self._again, listening)

    def _again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening)

    async def _serve(self, connection: socket.socket, address: str, place: Place) -> None:
        loop, protocol = asyncio.get_running_loop(), partial(self._protocol, place)
        if self._certificate is None:
            await loop.connect_accepted_socket(protocol, connection)
            return
        try:
            await loop.connect_accepted_socket(
                protocol,
                connection,
                ssl=self._certificate.context,
                ssl_handshake_timeout=HANDSHAKE_TIME,
                ssl_shutdown_timeout=SHUTDOWN_TIME,
            )
        except OSError as error:
            self._certificate.failures.note(error, address)
            raise
