"""Certificates that are renewed while a server runs: the next handshake uses what the directory holds by then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from gateway.file_signature import Signature, signature
from gateway.process import logs
from gateway.rpc.identity import Identity, IdentityError, expires_at

FILES: Final = ("cert.pem", "key.pem", "ca.pem")
LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the files, however many handshakes there are."""

_log = logs.get_logger(__name__)


class Renewal:
    """Watches a directory of `cert.pem`, `key.pem` and `ca.pem`. Safe to call from many threads.

    directory: where `identity` was loaded from. clock: monotonic seconds.
    """

    def __init__(self, directory: Path, identity: Identity, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._identity = identity
        self._clock = clock
        self._lock = threading.Lock()
        self._files = tuple(directory / name for name in FILES)
        self._seen: Signature = ()  # so the first look reads them: they may have changed since `identity` was loaded
        self._next_look = float("-inf")
        self._expires_at = expires_at(identity)

    @property
    def expires_at(self) -> datetime:
        """The end of the certificate in use."""
        return self._expires_at

    def look(self) -> Identity | None:
        """The renewed identity where the files have changed and hold a good one; else None, and the old one stays in use."""
        with self._lock:
            now = self._clock()
            if now < self._next_look:
                return None
            self._next_look = now + LOOK_EVERY
            found = signature(*self._files)
            if found == self._seen:
                return None
            self._seen = found
            try:
                renewed = self._load()
            except IdentityError as fault:  # also what is seen between two of the files being replaced
                _log.warning("certificate not renewed", fault=str(fault))
                return None
            if renewed == self._identity:
                return None
            self._identity, self._expires_at = renewed, expires_at(renewed)
            _log.info("certificate renewed", identity=renewed.name, expires_at=self._expires_at.isoformat())
            return renewed

    def _load(self) -> Identity:
        identity = Identity.load(self._directory)
        if identity.name != self._identity.name:
            raise IdentityError(f"{self._directory} now holds the identity {identity.name}")
        return identity
