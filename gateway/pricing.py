"""Prices: what usage costs, and the most that a call can cost. Exact until the end, then rounded once.

Rates are decimals per million tokens (or per single unit for the units that are not tokens) in currency units, as the price
book has them. A rate may have tiers: above a number of input tokens the whole call is charged at the tier's rate, which is how
providers price long contexts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from functools import lru_cache

from gateway import usage as units
from gateway.money import NANOS

_PER_MILLION = Decimal(1_000_000)
_EXACT = Context(prec=60)
_NO_RATE = Decimal(0)

# A unit without a rate of its own costs what this one costs.
_FALLBACK: Mapping[str, str] = {
    units.CACHED_INPUT: units.INPUT,
    units.CACHE_WRITE: units.INPUT,
    units.REASONING: units.OUTPUT,
    units.CACHED_INPUT_AUDIO: units.INPUT_AUDIO,
}
_TOKEN_UNITS = frozenset({units.INPUT, units.OUTPUT, *units.PART_OF})
# What a text call can always trigger on the input side; audio only when the request carries it.
_INPUT_SIDE = (units.INPUT, units.CACHED_INPUT, units.CACHE_WRITE)
_OUTPUT_SIDE = (units.OUTPUT, units.REASONING)


@dataclass(frozen=True, slots=True)
class Rate:
    """The price of one unit: a base, and tiers as (input tokens above which it holds, rate), ascending."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()

    def at(self, input_tokens: int) -> Decimal:
        """The rate for a call that read this many tokens."""
        rate = self.base
        for start, tier_rate in self.tiers:
            if input_tokens > start:
                rate = tier_rate
        return rate

    def highest(self, input_tokens: int) -> Decimal:
        """The highest rate for any call that reads at most this many tokens."""
        return max([self.base, *(rate for start, rate in self.tiers if input_tokens > start)])


class Rates:
    """The rates of one row of the price book, by unit."""

    __slots__ = ("_rates", "_text")

    def __init__(self, rates: Mapping[str, Rate]) -> None:
        self._rates = dict(rates)
        self._text = json.dumps(
            {
                unit: str(rate.base) if not rate.tiers else [str(rate.base), *([start, str(r)] for start, r in rate.tiers)]
                for unit, rate in sorted(rates.items())
            },
            separators=(",", ":"),
        )

    @staticmethod
    @lru_cache(maxsize=4096)
    def from_json(text: str) -> Rates:
        """Rates from their JSON text: `{"input": "2.5", "output": ["10", [200000, "15"]]}`. Raises ValueError."""
        try:
            document = json.loads(text)
            return Rates({str(unit): _rate(value) for unit, value in document.items()})
        except (InvalidOperation, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"these are no rates: {text[:200]}") from error

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return self._text

    def covers(self, unit: str) -> bool:
        """Whether this unit has a rate, of its own or by falling back."""
        return unit in self._rates or _FALLBACK.get(unit, "") in self._rates

    def of(self, unit: str) -> Rate | None:
        """The rate of a unit, or of what it falls back to; None: it costs nothing."""
        return self._rates.get(unit) or self._rates.get(_FALLBACK.get(unit, ""))


def cost_nanos(usage: Mapping[str, int], rates: Rates) -> int:
    """Cost of one call in nano-dollars.

    usage: counts by unit, 0 or more; cached, written and audio input is inside `input`, reasoning and audio output inside
    `output`. A call costs `per_request` once whether or not the usage names it.
    rates: one row of the price book.
    Exact until the end, then rounded half to even, once. Raises ValueError on a negative count.
    """
    if any(count < 0 for count in usage.values()):
        raise ValueError("a count is 0 or more")
    input_tokens = usage.get(units.INPUT, 0)
    whole = dict(usage)
    whole[units.PER_REQUEST] = usage.get(units.PER_REQUEST, 1)
    for part, of in units.PART_OF.items():
        if part in usage and of in whole:
            whole[of] -= usage[part]
    if units.CACHED_INPUT_AUDIO in usage and units.CACHED_INPUT in usage:
        # Providers count cached audio in the cached total too; it was taken from the input twice above.
        overlap = min(usage[units.CACHED_INPUT_AUDIO], usage[units.CACHED_INPUT])
        whole[units.CACHED_INPUT] -= overlap
        whole[units.INPUT] = whole.get(units.INPUT, 0) + overlap
    total = _NO_RATE
    for unit, count in whole.items():
        rate = rates.of(unit)
        if rate is not None and count > 0:
            total = _EXACT.add(total, _price(unit, count, rate.at(input_tokens)))
    return _to_nanos(total, ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a call can cost, as a function of its output limit: `fixed + output_limit * per_output_token`."""

    fixed: Decimal
    """In currency units: all of the input at the dearest rate that it can trigger, and what the call costs by itself."""
    per_output_token: Decimal
    """In currency units, for one token of the limit; all choices together."""

    def nanos(self, output_limit: int) -> int:
        """The bound for this output limit in nano-dollars, rounded up."""
        return _to_nanos(_EXACT.add(self.fixed, _EXACT.multiply(self.per_output_token, Decimal(output_limit))), ROUND_CEILING)

    def affordable(self, nanos: int) -> int | None:
        """The largest output limit whose bound is within this money; None: any; negative: not even the input is paid."""
        left = _EXACT.subtract(Decimal(nanos) / NANOS, self.fixed)
        if self.per_output_token == 0:
            return None if left >= 0 else -1
        return int(_EXACT.divide(left, self.per_output_token).to_integral_value(ROUND_FLOOR))


def bound(
    rates: Rates,
    *,
    input_tokens: int,
    choices: int = 1,
    extra_units: Iterable[str] = (),
    fixed: Mapping[str, int] | None = None,
) -> Bound:
    """The upper bound of what a call can cost at these rates.

    input_tokens: an upper bound of the input. choices: how many answers are generated, each up to the output limit.
    extra_units: units beyond text that the call can trigger. fixed: units of a known number, such as images.
    """
    extra = tuple(extra_units)
    input_side = [*_INPUT_SIDE, *(unit for unit in extra if units.PART_OF.get(unit) == units.INPUT)]
    output_side = [*_OUTPUT_SIDE, *(unit for unit in extra if units.PART_OF.get(unit) == units.OUTPUT)]
    total = _price(units.INPUT, input_tokens, _highest(rates, input_side, input_tokens))
    for unit, count in {units.PER_REQUEST: 1, **(fixed or {})}.items():
        total = _EXACT.add(total, _price(unit, count, _highest(rates, [unit], input_tokens)))
    per_token = _EXACT.divide(_highest(rates, output_side, input_tokens), _PER_MILLION)
    return Bound(fixed=total, per_output_token=_EXACT.multiply(per_token, Decimal(max(1, choices))))


def _rate(value: object) -> Rate:
    if isinstance(value, list):
        tiers = tuple((int(start), _decimal(rate)) for start, rate in value[1:])
        return Rate(_decimal(value[0]), tuple(sorted(tiers)))
    return Rate(_decimal(value))


def _decimal(value: object) -> Decimal:
    if not isinstance(value, str):
        raise TypeError("a rate is a decimal in quotes")
    rate = Decimal(value)
    if not rate.is_finite() or rate < 0:
        raise ValueError("a rate is a finite decimal of 0 or more")
    return rate


def _highest(rates: Rates, wanted: Iterable[str], input_tokens: int) -> Decimal:
    found = [rate.highest(input_tokens) for rate in map(rates.of, wanted) if rate is not None]
    return max(found, default=_NO_RATE)


def _price(unit: str, count: int, rate: Decimal) -> Decimal:
    amount = _EXACT.multiply(Decimal(count), rate)
    return _EXACT.divide(amount, _PER_MILLION) if unit in _TOKEN_UNITS else amount


def _to_nanos(amount: Decimal, rounding: str) -> int:
    return int(_EXACT.multiply(amount, Decimal(NANOS)).to_integral_value(rounding))
