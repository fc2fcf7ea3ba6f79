"""Deletes what is older than the installation keeps it, a little at each of the sweeper's looks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from gateway.clock import Clock
from gateway.process.logs import get_logger
from gateway.storage.database import Database
from gateway.storage.ledger import Ledger
from gateway.storage.retention import AT_ONCE, Position, old_calls, prune_denials, prune_refusals
from services.auth.metrics import AuthMetrics

BATCHES: Final = 60
"""Transactions of one look: it must not keep the sweeper from looking after open calls."""
PAUSE: Final = 0.02
"""Seconds between two of them, in which others write."""
_EVERY: Final = 720  # looks, which is an hour, once nothing is left to delete

_log = get_logger(__name__)


class Pruner:
    """Deletes rows of calls and of refusals, and their counts. Any number of auth processes may do so at once.

    days: how long they are kept; 0: for good. stop: ends a look early.
    """

    def __init__(
        self, *, db: Database, ledger: Ledger, clock: Clock, metrics: AuthMetrics, days: int, stop: threading.Event
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._days = days
        self._stop = stop
        self._position: Position | None = Position()
        self._rest = 0

    def look(self) -> None:
        """Deletes some of what is old; once a walk is through, begins the next one an hour later."""
        if not self._days:
            return
        if self._position is None:
            self._rest += 1
            if self._rest < _EVERY:
                return
            self._position, self._rest = Position(), 0
        now = self._clock.now()
        before = now - timedelta(days=self._days)
        calls = 0
        for _ in range(BATCHES):
            if self._position is None or self._stop.is_set():
                break
            found, following = old_calls(self._db, before, now, self._position)
            if found:
                calls += self._ledger.prune(found, before)
                self._stop.wait(PAUSE)
            self._position = following
        denials, refusals = self._all(prune_denials, before), self._all(prune_refusals, before)
        self._metrics.pruned("requests", calls)
        self._metrics.pruned("denials", denials)
        self._metrics.pruned("refusals", refusals)
        if calls or denials or refusals:
            _log.info("deleted what is older than it is kept", calls=calls, denials=denials, refusals=refusals, days=self._days)

    def _all(self, prune: Callable[[Database, datetime], int], before: datetime) -> int:
        """Deletes what a function deletes, batch by batch; gives how many rows that were."""
        gone = 0
        for _ in range(BATCHES):
            if self._stop.is_set():
                break
            now = prune(self._db, before)
            gone += now
            if now < AT_ONCE:
                break
            self._stop.wait(PAUSE)
        return gone
