"""Time: the wall clock decides expiry, the monotonic clock decides timeouts and leases. Tests bring a clock of their own."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol


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
        return time.monotonic()


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
