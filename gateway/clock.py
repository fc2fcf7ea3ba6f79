"""Time: the wall clock decides expiry, the monotonic clock decides timeouts and leases. Tests bring a clock of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Protocol

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# It goes on while the machine sleeps, as the wall clock does.
_MONOTONIC: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What tells the time."""

    def now(self) -> datetime:
        """The wall clock, in UTC with its zone."""
        ...

    def monotonic(self) -> float:
        """Seconds that no clock step changes."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """The wall clock, in UTC with its zone."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that no clock step changes."""
        return time.clock_gettime(_MONOTONIC)


class SteadyClock:
    """The wall clock, but that a jump of it against the monotonic clock counts only once it has proved stable.

    For what begins and ends by the calendar (budget periods, pruning by age, sessions): a clock that is days ahead for a few
    seconds would start a budget anew. What it cannot know is that the clock was wrong from the start.
    clock: the machine's. tell: is given the seconds of a jump, and whether it is followed from now on.
    """

    DRIFT: Final = 2.0
    """Seconds by which the two clocks may come apart between two looks: more is a jump, less is the clock being slewed."""
    PROOF: Final = 60.0
    """Seconds for which the wall clock must go on evenly after a jump before that is followed."""

    def __init__(self, clock: Clock, *, tell: Callable[..., None] = lambda seconds, *, followed: None) -> None:
        self._clock = clock
        self._tell = tell
        self._lock = threading.Lock()
        self._trusted = self._offset()
        self._candidate: timedelta | None = None
        self._since = 0.0

    def now(self) -> datetime:
        """The wall clock as far as it is trusted, in UTC with its zone."""
        drift = timedelta(seconds=self.DRIFT)
        with self._lock:
            monotonic, offset = self._clock.monotonic(), self._offset()
            if abs(offset - self._trusted) <= drift:
                self._trusted, self._candidate = offset, None
            elif self._candidate is None or abs(offset - self._candidate) > drift:
                self._candidate, self._since = offset, monotonic
                self._tell((offset - self._trusted).total_seconds(), followed=False)
            elif monotonic - self._since >= self.PROOF:
                self._tell((offset - self._trusted).total_seconds(), followed=True)
                self._trusted, self._candidate = offset, None
            else:
                self._candidate = offset
            return _EPOCH + self._trusted + timedelta(seconds=monotonic)

    def monotonic(self) -> float:
        """Seconds that no clock step changes."""
        return self._clock.monotonic()

    def _offset(self) -> timedelta:
        return self._clock.now() - _EPOCH - timedelta(seconds=self._clock.monotonic())


def to_text(moment: datetime) -> str:
    """A moment as the database keeps it: `2026-11-23T19:22:37.123456Z`. Texts of this form sort by time."""
    # Twice as fast as `strftime`, and the ledger writes several a call.
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def from_text(text: str) -> datetime:
    """A moment from the database's text. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@lru_cache(maxsize=4096)
def parse_expiry(text: str) -> datetime:
    """The last moment at which something works, from what a person writes.

    `2027-01-31` means through that day, UTC. `2027-01-31T12:00:00+01:00` and `2027-01-31 12:00` (read as UTC) mean that moment.
    Raises ValueError with what would have been right.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no date: write 2027-01-31 or 2027-01-31T12:00:00Z") from None
    if len(text.strip()) <= len("2027-01-31"):
        return moment.replace(hour=23, minute=59, second=59, microsecond=999_999, tzinfo=UTC)
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text!r} lies outside of the years 1 to 9999 in UTC") from None


def parse_beginning(text: str, now: datetime | None = None) -> datetime | None:
    """The moment from which something holds, from what a person writes; None: from now on.

    `2027-01-31` means the start of that day, UTC; today, in UTC, means now. Moments are read as by `parse_expiry`.
    now: the wall clock by default. Raises ValueError with what would have been right.
    """
    if len(text.strip()) > len("2027-01-31"):
        return parse_expiry(text)
    day = parse_expiry(text).replace(hour=0, minute=0, second=0, microsecond=0)
    return None if day.date() == (now or datetime.now(UTC)).date() else day
