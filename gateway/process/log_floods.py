"""Log lines that strangers can cause: the first ones are written, the others are counted and reported in one line together."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Final

EVERY: Final = 10.0
"""Seconds between two lines that report what was left out."""
_REMEMBERED: Final = 10_000
_LISTED: Final = 20


class _Bucket:
    """Lines that may be written: some at once, and then so many a second."""

    __slots__ = ("at", "left")

    def __init__(self, now: float, burst: float) -> None:
        self.at = now
        self.left = burst

    def take(self, now: float, burst: float, per_second: float) -> bool:
        """Whether one may be written now."""
        self.left = min(burst, self.left + (now - self.at) * per_second)
        self.at = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class LogFloods:
    """Bounds the lines of one kind, of each source and of all together. Safe to use from any thread.

    report: writes the line about those that were left out; it gets `count`, `seconds`, `kinds` (how many of each) and `sources`
    (how many different ones). It is called from `admits` or `flush`, every ten seconds at the most.
    burst, per_second: lines of one source. burst_of_all, per_second_of_all: lines of all sources.
    """

    def __init__(
        self,
        report: Callable[..., None],
        *,
        burst: float = 30.0,
        per_second: float = 1.0,
        burst_of_all: float = 300.0,
        per_second_of_all: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._of_one = burst, per_second
        self._of_all = burst_of_all, per_second_of_all
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._all = _Bucket(clock(), burst_of_all)
        self._kinds: Counter[str] = Counter()
        self._sources: set[str] = set()
        self._since = clock()

    def admits(self, source: str, kind: str) -> bool:
        """Whether a line may be written; otherwise it is counted. source: who caused it. kind: one of a few words."""
        now = self._clock()
        with self._lock:
            bucket = self._buckets.pop(source, None) or _Bucket(now, self._of_one[0])
            self._buckets[source] = bucket
            if len(self._buckets) > _REMEMBERED:
                self._buckets.popitem(last=False)
            admitted = bucket.take(now, *self._of_one) and self._all.take(now, *self._of_all)
            if not admitted:
                if not self._kinds:
                    self._since = now
                self._kinds[kind] += 1
                if len(self._sources) < _REMEMBERED:
                    self._sources.add(source)
            facts = self._take(now) if self._kinds and now - self._since >= EVERY else None
        if facts is not None:
            self._report(**facts)
        return admitted

    def flush(self) -> None:
        """Reports what was left out so far, if anything was."""
        with self._lock:
            facts = self._take(self._clock()) if self._kinds else None
        if facts is not None:
            self._report(**facts)

    def _take(self, now: float) -> dict[str, Any]:
        facts = {
            "count": self._kinds.total(),
            "seconds": round(now - self._since, 1),
            "kinds": dict(self._kinds.most_common(_LISTED)),
            "sources": len(self._sources),
        }
        self._kinds.clear()
        self._sources.clear()
        self._since = now
        return facts
