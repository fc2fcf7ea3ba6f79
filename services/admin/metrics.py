"""What admin tells Prometheus: logins and sessions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.clock import Clock, to_text
from gateway.errors import DatabaseUnavailable, GatewayError, Throttled, Unauthenticated
from gateway.storage.database import Database

OUTCOMES: Final = ("succeeded", "failed", "throttled", "unavailable")
_COUNT_EVERY: Final = 10.0  # seconds


class AdminMetrics:
    """Counts in one registry; safe to call from many threads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._logins = Counter("gateway_admin_logins", "Logins of administrators, by outcome.", ["outcome"], registry=registry)
        self._sessions = Gauge("gateway_admin_sessions", "Sessions of administrators that have not ended.", registry=registry)
        for outcome in OUTCOMES:
            self._logins.labels(outcome)

    def login(self, error: GatewayError | None) -> None:
        """Counts a login. error: why it failed; None: it did not."""
        if error is None:
            outcome = "succeeded"
        elif isinstance(error, Unauthenticated):
            outcome = "failed"
        else:
            outcome = "throttled" if isinstance(error, Throttled) else "unavailable"
        self._logins.labels(outcome).inc()

    def sessions(self, count: int) -> None:
        """Notes how many sessions there are."""
        self._sessions.set(count)


class SessionCount:
    """Counts sessions every ten seconds, for whoever calls more often. For one thread.

    seconds: monotonic.
    """

    def __init__(
        self, db: Database, metrics: AdminMetrics, *, clock: Clock, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._db = db
        self._metrics = metrics
        self._clock = clock
        self._seconds = seconds
        self._next = float("-inf")

    def look(self) -> None:
        """Counts, if it is time."""
        now = self._seconds()
        if now < self._next:
            return
        self._next = now + _COUNT_EVERY
        try:
            ((count,),) = self._db.query(
                "SELECT COUNT(*) FROM sessions WHERE revoked_at IS NULL AND expires_at > ?", (to_text(self._clock.now()),)
            )
        except DatabaseUnavailable:
            return
        self._metrics.sessions(count)
