"""The rule of settlement: what a call is charged when it is reported. Pure; the ledger applies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.pricing import Rates, cost_nanos
from gateway.usage import Outcome, Report, Source, State, is_plausible

IMPLAUSIBLE_HOLDS = 100  # a cost above this many holds is no number that a provider meant


@dataclass(frozen=True, slots=True)
class Charge:
    """What a report does to a call."""

    state: State
    cost_nanos: int
    source: Source
    usage: Mapping[str, int] = field(default_factory=dict)
    """The counts to keep; empty where none can be believed."""
    implausible: bool = False
    """The provider's numbers were not believed."""
    overrun_nanos: int = 0
    """By how much the provider billed more than the hold, which is its own limit."""


def charge(report: Report, *, held_nanos: int, rates: Rates | None) -> Charge:
    """What this report charges.

    held_nanos: what the call holds. rates: the price that it was admitted at; None: it has none and costs nothing.
    A provider's own numbers are charged in full even above the hold; estimates are charged up to the hold; numbers that nobody
    can have meant are charged at the hold and marked `estimated`.
    """
    if report.outcome is Outcome.RELEASED:
        return Charge(State.RELEASED, 0, Source.NONE)
    if report.outcome is Outcome.SETTLED_AT_HOLD:
        # By the provider's numbers, at the hold: whoever read them did not believe them.
        return Charge(State.SETTLED, held_nanos, Source.ESTIMATED, implausible=report.source is Source.PROVIDER)
    if not is_plausible(report.usage):
        return Charge(State.SETTLED, held_nanos, Source.ESTIMATED, implausible=True)
    cost = 0 if rates is None else cost_nanos(report.usage, rates)
    if report.source is Source.ESTIMATED:
        return Charge(State.SETTLED, min(cost, held_nanos) if rates is not None else 0, Source.ESTIMATED, report.usage)
    if held_nanos > 0 and cost > IMPLAUSIBLE_HOLDS * held_nanos:
        return Charge(State.SETTLED, held_nanos, Source.ESTIMATED, implausible=True)
    return Charge(State.SETTLED, cost, report.source, report.usage, overrun_nanos=max(0, cost - held_nanos))
