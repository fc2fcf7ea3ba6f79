"""Deletes what is older than the installation keeps it, a little at each of the sweeper's looks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gateway.clock import Clock
from gateway.errors import DatabaseUnavailable
from gateway.process.logs import get_logger
from gateway.storage.database import Database
from gateway.storage.ledger import Ledger
from gateway.storage.retention import AT_ONCE, Position, newest_sign, old_calls, prune_denials, prune_refusals
from services.auth.metrics import AuthMetrics

BATCHES: Final = 60
"""Transactions of one look: it must not keep the sweeper from looking after open calls."""
PAUSE: Final = 0.02
"""Seconds between two of them, in which others write."""
REFUSAL_DAYS: Final = 30
"""Days that single refusals are kept at the most, also where rows of calls are kept for good.

They are what whoever was refused asks about, which he does soon, and what a flood of refused calls writes: their number is
bounded by the time that they are kept alone.
"""
SILENCE: Final = timedelta(days=7)
"""Time without a sign of life in the database after which a clock at the start of auth is not believed at once."""
_EVERY: Final = 720  # looks, which is an hour, once nothing is left to delete
_WARY: Final = 24 * _EVERY  # a day, in which people notice a wrong date, as tokens expire by it

_log = get_logger(__name__)


@dataclass(slots=True)
class _Rest:
    """How many looks one table is left alone for; 0: it is its turn."""

    looks: int = 0

    def is_over(self) -> bool:
        """Whether it is the table's turn; counts a look that is not."""
        if self.looks:
            self.looks -= 1
        return not self.looks

    def begin(self, *, through: bool) -> None:
        """Leaves the table alone for an hour once its walk is through; else goes on with the next look."""
        self.looks = _EVERY if through else 0


class Pruner:
    """Deletes rows of calls and of refusals, and their counts. Any number of auth processes may do so at once.

    days: how long they are kept, single refusals `REFUSAL_DAYS` at the most; 0: rows of calls and counts stay for good.
    stop: ends a look early.
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
        self._position = Position()
        first = _WARY if self._is_far_ahead() else 0
        self._calls, self._denials, self._refusals = _Rest(first), _Rest(first), _Rest(first)

    def look(self) -> None:
        """Deletes some of what is old; of each table, once nothing is left, begins anew an hour later."""
        now = self._clock.now()
        refusal_days = min(self._days or REFUSAL_DAYS, REFUSAL_DAYS)
        calls = denials = 0
        if self._days:
            before = now - timedelta(days=self._days)
            calls = self._prune_calls(before, now)
            denials = self._prune_all(prune_denials, before, self._denials)
        refusals = self._prune_all(prune_refusals, now - timedelta(days=refusal_days), self._refusals)
        self._metrics.pruned("requests", calls)
        self._metrics.pruned("denials", denials)
        self._metrics.pruned("refusals", refusals)
        if calls or denials or refusals:
            kept = {"days": self._days, "refusal_days": refusal_days}
            _log.info("deleted what is older than it is kept", calls=calls, denials=denials, refusals=refusals, **kept)

    def _is_far_ahead(self) -> bool:
        """Whether the clock is so far ahead of the newest row that it may be wrong: then nothing is deleted for a day.

        Asked before this auth serves, as from then on rows are written by the same clock.
        """
        try:
            newest = newest_sign(self._db)
        except DatabaseUnavailable as error:
            _log.warning("pruning_postponed", hours=24, fault=error.message)
            return True
        if newest is None or self._clock.now() - newest <= SILENCE:
            return False
        _log.warning(
            "pruning_postponed", hours=24, fault="the clock is far ahead: check the date", newest_row=newest.isoformat()
        )
        return True

    def _prune_calls(self, before: datetime, now: datetime) -> int:
        """Goes on with the walk over the calls; gives how many were deleted."""
        gone = 0
        if not self._calls.is_over():
            return gone
        for _ in range(BATCHES):
            if self._stop.is_set():
                break
            found, following = old_calls(self._db, before, now, self._position)
            if found:
                gone += self._ledger.prune(found, before)
                self._stop.wait(PAUSE)
            self._position = following or Position()
            self._calls.begin(through=following is None)
            if following is None:
                break
        return gone

    def _prune_all(self, prune: Callable[[Database, datetime], int], before: datetime, rest: _Rest) -> int:
        """Deletes what a function deletes, batch by batch; gives how many rows that were."""
        gone = 0
        if not rest.is_over():
            return gone
        for _ in range(BATCHES):
            if self._stop.is_set():
                break
            deleted = prune(self._db, before)
            gone += deleted
            rest.begin(through=deleted < AT_ONCE)
            if deleted < AT_ONCE:
                break
            self._stop.wait(PAUSE)
        return gone
