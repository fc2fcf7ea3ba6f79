"""TLS at the edge: handshakes within their time and number, and a certificate that is exchanged while the edge runs."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.process.logs import get_logger
from gateway.process.tls import Certificate, CertificateFault, Signature, load_certificate, signature

HANDSHAKE_TIME = 10.0
"""Seconds from a connection to the end of its handshake."""
SHUTDOWN_TIME = 2.0
"""Seconds that a caller has to confirm the end of a connection."""
LOOK_EVERY = 0.5
"""Seconds between two looks at the files."""
_WARN_EVERY = 12 * 3600.0
_TELL_EVERY = 1.0

_log = get_logger(__name__)


class Failures:
    """Handshakes that failed, told once a second: they cost a stranger nothing, and a line each would bury the rest."""

    def __init__(self) -> None:
        self._next = 0.0
        self._untold = 0

    def note(self, error: BaseException, peer: Any) -> None:
        """Notes one. peer: the address and port that it came from; None: not known."""
        if isinstance(error, asyncio.CancelledError):
            return
        now = time.monotonic()
        if now < self._next:
            self._untold += 1
            return
        self._next = now + _TELL_EVERY
        more = {"others_before": self._untold} if self._untold else {}
        self._untold = 0
        _log.info("tls_handshake_failed", reason=_reason(error), client_ip=peer[0] if peer else "", **more)


class EdgeCertificate:
    """The certificate of the HTTP ports, as it is in its files at the moment.

    Raises CertificateFault when the files hold none that can be used.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._seen = signature(cert, key)
        self._failed: Signature | None = None
        self._untold = False
        self._next_warning = 0.0
        self._current = load_certificate(cert, key)
        self.failures = Failures()
        self._first = self._current.context
        # A handshake begins with the first certificate and goes on with the one of the moment. To load another one into the
        # same context would be no exchange: it would be half done when the new pair does not fit.
        self._first.sni_callback = self._choose
        self._tell()

    @property
    def context(self) -> ssl.SSLContext:
        """What each handshake begins with."""
        return self._first

    @property
    def current(self) -> Certificate:
        """What is served to new connections."""
        return self._current

    async def watch(self) -> None:
        """Takes over what changes in the files, until it is cancelled. A pair that cannot be used is logged and left alone."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Looks at the files once."""
        found = signature(self._cert, self._key)
        if found != self._seen:
            self._renew(found)
        elif self._current.concern() and time.monotonic() >= self._next_warning:
            self._tell()

    def _renew(self, found: Signature) -> None:
        try:
            self._current = load_certificate(self._cert, self._key)
        except CertificateFault as fault:
            # Two files change one after the other: what does not fit now may fit in a moment, so the second look tells.
            if self._failed != found:
                self._failed, self._untold = found, True
            elif self._untold:
                self._untold = False
                _log.error("certificate_rejected", error=str(fault), kept_until=self._current.not_after.isoformat())
            return
        self._seen, self._failed = found, None
        _log.info("certificate_renewed", names=self._current.names, not_after=self._current.not_after.isoformat())
        self._tell()

    def _tell(self) -> None:
        self._next_warning = time.monotonic() + _WARN_EVERY
        concern = self._current.concern()
        if concern:
            _log.warning("certificate_dates", file=str(self._cert), concern=concern)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if self._current.context is not self._first:
            connection.context = self._current.context


class Handshake(asyncio.Protocol):
    """A connection until its handshake has ended; then `establish` makes the protocol that takes its place.

    full: whether there are too many connections. handshakes: those that are going on, this one among them until it has ended.
    """

    def __init__(
        self,
        certificate: EdgeCertificate,
        *,
        establish: Callable[[], asyncio.Protocol],
        full: Callable[[], bool],
        handshakes: set[Handshake],
    ) -> None:
        self._certificate = certificate
        self._establish = establish
        self._full = full
        self._handshakes = handshakes
        self._early: list[bytes] = []
        self._lost = False
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins the handshake, or ends the connection when there are too many."""
        assert isinstance(transport, asyncio.Transport)
        self._handshakes.add(self)
        if self._full():
            self._handshakes.discard(self)
            transport.abort()
            return
        transport.pause_reading()  # what comes is for the handshake
        self._task = asyncio.get_running_loop().create_task(self._shake_hands(transport))

    def data_received(self, data: bytes) -> None:
        """Keeps what came right behind the handshake."""
        self._early.append(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Notes the end."""
        self._lost = True

    def abort(self) -> None:
        """Ends a handshake that is going on."""
        if self._task is not None:
            self._task.cancel()

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                transport,
                self,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_TIME,
                ssl_shutdown_timeout=SHUTDOWN_TIME,
            )
        except (OSError, asyncio.CancelledError) as error:
            transport.abort()
            self._certificate.failures.note(error, transport.get_extra_info("peername"))
            return
        finally:
            self._handshakes.discard(self)
        if secured is None or self._lost:
            return
        protocol = self._establish()
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if self._early:
            protocol.data_received(b"".join(self._early))


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "HTTP_REQUEST":
            return "this port speaks https, and plain http came"
        return (error.reason or type(error).__name__).lower().replace("_", " ")
    if isinstance(error, (TimeoutError, ConnectionAbortedError)):
        return f"it was not done, or took more than {HANDSHAKE_TIME:.0f} s"
    return "the caller went away"
