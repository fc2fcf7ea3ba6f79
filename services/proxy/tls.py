"""TLS at the edge: a certificate that is exchanged while the edge runs, and handshakes that fail."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

from gateway.file_signature import Signature, signature
from gateway.process.logs import get_logger
from gateway.process.tasks import survives
from gateway.process.tls import Certificate, CertificateFault, load_certificate

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

    def note(self, error: OSError, address: str) -> None:
        """Notes one. address: where it came from."""
        now = time.monotonic()
        if now < self._next:
            self._untold += 1
            return
        self._next = now + _TELL_EVERY
        more = {"others_before": self._untold} if self._untold else {}
        self._untold = 0
        _log.info("tls_handshake_failed", reason=_reason(error), client_ip=address, **more)


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

    @survives
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


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "HTTP_REQUEST":
            return "this port speaks https, and plain http came"
        return (error.reason or type(error).__name__).lower().replace("_", " ")
    if isinstance(error, (TimeoutError, ConnectionAbortedError)):
        return f"it was not done, or took more than {HANDSHAKE_TIME:.0f} s"
    return "the caller went away"
