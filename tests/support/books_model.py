"""A token's books as a plain model: what it has spent, holds and may. Tests compare the ledger with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
DEAD = datetime.min.replace(tzinfo=UTC)
"""Until when a secret works that was replaced without a grace time."""


@dataclass
class Call:
    """A call as the model remembers it. Tokens are those of input and output together."""

    id: str
    proxy: str
    at: datetime
    """When it was admitted, never before the period and the minute that its token was in."""
    hold: int
    read: int
    granted: int
    expected: int
    rate: int
    state: str = "admitted"
    cost: int = 0
    used: int = 0
    report: Any = None
    ended: datetime | None = None
    corrected: int = 0
    """What repricing has added."""
    is_gone: bool = False


@dataclass
class Model:
    """A token."""

    id: int
    secrets: list[tuple[str, datetime | None]]
    """The newest last; with the moment until which it works, None: for good."""
    most: int | None
    period: str
    requests: int | None
    tokens: int | None
    parallel: int | None
    start: datetime | None = None
    minute: datetime | None = None
    begun: int = 0
    """Calls in this minute."""
    used: int = 0
    """Tokens in this minute."""
    is_deleted: bool = False
    calls: list[Call] = field(default_factory=list)
    corrections: list[tuple[int, datetime]] = field(default_factory=list)

    def enter_period(self, now: datetime) -> None:
        start = beginning(self.period, now)
        is_left = start is None or self.start is None or self.start < start or beginning(self.period, self.start) != self.start
        if is_left or self.start > now + HOUR:  # begun by a clock that was wrong by more than another machine's may be
            self.start = start

    def enter(self, now: datetime) -> None:
        self.enter_period(now)
        if self.minute is None or self.minute < minute_of(now) or self.minute > now + MINUTE:
            self.minute, self.begun, self.used = minute_of(now), 0, 0

    def entered(self, now: datetime) -> Model:
        """As it would be at a moment; its calls are the same."""
        there = replace(self)
        there.enter(now)
        return there

    def admit(self, call: Call, now: datetime) -> None:
        self.enter(now)
        call.at = max(now, self.start or now, self.minute or now)
        self.begun, self.used = self.begun + 1, self.used + call.expected
        self.calls.append(call)

    def end(self, call: Call, state: str, cost: int, used: int, now: datetime, *, is_known: bool) -> None:
        """is_known: whether `used` tokens take the place of those that were expected."""
        self.enter(now)
        call.state, call.cost, call.used, call.ended = state, cost, used, now
        if is_known and self.minute == minute_of(call.at):
            self.used = max(0, self.used + used - call.expected)

    def correct(self, amount: int, now: datetime) -> None:
        self.enter_period(now)
        self.corrections.append((amount, max(now, self.start or now)))

    def spent(self) -> int:
        """In the period that it is in."""
        since = self.start or DEAD
        return sum(call.cost for call in self.calls if call.at >= since) + sum(n for n, at in self.corrections if at >= since)

    def total(self) -> int:
        return sum(call.cost for call in self.calls) + sum(amount for amount, _ in self.corrections)

    def open(self) -> list[Call]:
        return [call for call in self.calls if call.state == "admitted"]

    def held(self) -> int:
        return sum(call.hold for call in self.open())

    def decide(self, secret: str, now: datetime, read: int, limit: int, token_price: int) -> str | int:
        """The output limit that is granted, or the name of the refusal."""
        until = dict(self.secrets).get(secret, DEAD)
        if self.is_deleted or (until is not None and until <= now):
            return "TokenUnknown"
        there = self.entered(now)
        left = None if self.most is None else self.most - there.spent()
        if left is not None and left <= 0:
            return "BudgetExhausted"
        for most, used in (
            (self.parallel, len(self.open())),
            (self.requests, there.begun),
            (self.tokens, there.used),
        ):
            if most is not None and used >= most:
                return "RateLimited"
        if left is None or (read + limit) * token_price <= left - self.held():
            return limit
        if (read + min(limit, 16)) * token_price > left:
            return "RequestExceedsBudget"
        if self.held():
            return "BudgetReserved"
        return min(limit, left // token_price - read)


def minute_of(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def beginning(period: str, now: datetime) -> datetime | None:
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    starts = {"daily": day, "weekly": day - day.weekday() * DAY, "monthly": day.replace(day=1)}
    return starts.get(period)
