"""What the client gives back: grants, receipts, a token's books, and reports that were not delivered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from gateway.errors import InvalidArgument
from gateway.money import to_units
from gateway.pricing import Rates
from gateway.settlement import charge
from gateway.usage import Outcome, Report, Source, State


@dataclass(frozen=True, slots=True)
class Price:
    """What one candidate costs."""

    provider: str
    """Empty: whoever makes the model."""
    model: str
    price_id: int
    """The row of the price book; 0: the model has no price."""
    rates: Rates | None
    """None: no price, so it costs nothing."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A yes, for one call. The money stays set aside until the call is reported, or until the lease ends."""

    request_id: str
    """The call's id in the ledger; report its usage under it."""
    token_id: int
    """The token's id, for logs; the token itself belongs in none."""
    max_output_tokens: int | None
    """The output limit, in tokens for one choice, that the call must keep; None: it goes as it was asked for."""
    held_nanos: int
    """The money set aside, in nano-dollars."""
    prices: tuple[Price, ...]
    """One a candidate, in the order of the request."""
    lease: float
    """Seconds for which the hold lives without a report or a renewal; then the whole hold is charged for now."""

    def cost_nanos(
        self, usage: Mapping[str, int], *, served: tuple[str, str] | None = None, source: Source = Source.COUNTED
    ) -> int:
        """What a report of this usage will be charged, in nano-dollars, by the function that charges it.

        usage: counts by unit, such as `{"input": 12, "output": 30}`. served: (provider, model), else the first.
        Raises InvalidArgument for what is no candidate of this call.
        """
        report = Report(self.request_id, Outcome.SETTLED, "", usage=usage, source=source)
        return charge(report, held_nanos=self.held_nanos, rates=self._price(served).rates).cost_nanos

    def cost(
        self, usage: Mapping[str, int], *, served: tuple[str, str] | None = None, source: Source = Source.COUNTED
    ) -> Decimal:
        """The same in currency units, exact."""
        return to_units(self.cost_nanos(usage, served=served, source=source))

    def _price(self, served: tuple[str, str] | None) -> Price:
        for price in self.prices:
            if served is None or (price.provider, price.model) == served:
                return price
        if served is None:
            return Price("", "", 0, None)
        raise InvalidArgument(f"served is {served!r}, which is no candidate of this call")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a report."""

    request_id: str
    delivered: bool
    """False: auth is away, the report is kept in memory and sent as soon as auth is back."""
    state: State | None
    """`settled` or `released`; None: not delivered yet."""
    cost_nanos: int | None
    """What the call cost; None: not delivered yet."""
    remaining_nanos: int | None
    """What is left on the token, holds not taken off; None: no budget, or not delivered yet."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A report that the ledger does not have. Its call is charged the hold when the lease ends."""

    request_id: str
    reason: str
    """`AUTH_UNAVAILABLE`: it could not be sent; any other: auth refused it for good."""
    message: str


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """A token's totals on one model."""

    model: str
    requests: int
    total_tokens: int
    amount_spent_nanos: int


@dataclass(frozen=True, slots=True)
class RecentCall:
    """One call of a token."""

    request_id: str
    at: datetime
    model: str
    tokens: int
    amount_nanos: int
    status: str
    """`admitted`, `settled`, `released` or `expired`."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """What the holder of a token may know. Money in nano-dollars."""

    token_id: int
    status: str
    """`active`, `disabled`, `expired` or `exhausted`."""
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    amount_spent_nanos: int
    """Spent in the current period."""
    max_amount_nanos: int | None
    """None: no budget."""
    remaining_nanos: int | None
    held_nanos: int
    """The part of what is left that calls in flight hold."""
    resets_at: datetime | None
    """None: never by itself."""
    models: tuple[ModelUsage, ...] = ()
    recent: tuple[RecentCall, ...] = ()
