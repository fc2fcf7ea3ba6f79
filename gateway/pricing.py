"""Prices: what usage costs, and the most that a call can cost. Exact until the end, then rounded once.

Rates are decimals per million tokens (or per single unit for the units that are not tokens) in currency units, as the price
book has them. A rate may have tiers: above a number of input tokens the whole call is charged at the tier's rate, which is how
providers price long contexts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from gateway import usage as units
from gateway.money import NANOS

_PER_MILLION = 1_000_000

# A unit without a rate of its own costs what this one costs.
_FALLBACK: Mapping[str, str] = {
    units.CACHED_INPUT: units.INPUT,
    units.CACHE_WRITE: units.INPUT,
    units.REASONING: units.OUTPUT,
    units.CACHED_INPUT_AUDIO: units.INPUT_AUDIO,
}
_TOKEN_UNITS = frozenset({units.INPUT, units.OUTPUT, *units.PART_OF})
# What a text call can always trigger on the input side; audio only when the request carries it.
_INPUT_SIDE: tuple[str, ...] = (units.INPUT, units.CACHED_INPUT, units.CACHE_WRITE)
_OUTPUT_SIDE: tuple[str, ...] = (units.OUTPUT, units.REASONING)
_PER_REQUEST = (units.PER_REQUEST,)


@dataclass(frozen=True, slots=True)
class Rate:
    """The price of one unit: a base, and tiers as (input tokens above which it holds, rate), ascending."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()


class Rates:
    """The rates of one row of the price book, by unit.

    Sums are made of integers: each rate times `scale`, the power of ten that leaves none of this row's rates a fraction. That
    is as exact as decimals and several times as fast.
    """

    __slots__ = ("_bounds", "_rates", "_scaled", "_text", "scale")

    def __init__(self, rates: Mapping[str, Rate]) -> None:
        self._rates = dict(rates)
        decimals = [rate.base for rate in rates.values()] + [tier for rate in rates.values() for _, tier in rate.tiers]
        exponents = [int(decimal.as_tuple().exponent) for decimal in decimals]
        self.scale = 10 ** max([0, *(-exponent for exponent in exponents)])
        self._scaled: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
            unit: (int(rate.base * self.scale), tuple((start, int(tier * self.scale)) for start, tier in rate.tiers))
            for unit in (*rates, *_FALLBACK)
            if (rate := self.of(unit)) is not None
        }
        self._bounds: dict[tuple[str, ...], int] = {}
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

    def scaled(self, unit: str, input_tokens: int) -> int:
        """The rate of a unit for a call that read this many tokens, times `scale`; 0: it costs nothing."""
        found = self._scaled.get(unit)
        if found is None:
            return 0
        rate, tiers = found
        for start, tier_rate in tiers:
            if input_tokens > start:
                rate = tier_rate
        return rate

    def highest_scaled(self, wanted: tuple[str, ...], input_tokens: int) -> int:
        """The highest rate of these units for any call that reads at most this many tokens, times `scale`."""
        if wanted in self._bounds:
            return self._bounds[wanted]
        found = [self._scaled[unit] for unit in wanted if unit in self._scaled]
        highest = max(
            (rate for base, tiers in found for rate in (base, *(tier for start, tier in tiers if input_tokens > start))),
            default=0,
        )
        if not any(tiers for _, tiers in found):  # without tiers it is the same for every call
            self._bounds[wanted] = highest
        return highest


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
    whole.setdefault(units.PER_REQUEST, 1)
    for part in units.PART_OF.keys() & usage.keys():
        whole[units.PART_OF[part]] = whole.get(units.PART_OF[part], 0) - usage[part]
    if units.CACHED_INPUT_AUDIO in usage and units.CACHED_INPUT in usage:
        # Providers count cached audio in the cached total too; it was taken from the input twice above.
        overlap = min(usage[units.CACHED_INPUT_AUDIO], usage[units.CACHED_INPUT])
        whole[units.CACHED_INPUT] -= overlap
        whole[units.INPUT] = whole.get(units.INPUT, 0) + overlap
    total = sum(_price(unit, count, rates.scaled(unit, input_tokens)) for unit, count in whole.items() if count > 0)
    return _half_even(total, rates.scale * _PER_MILLION)


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a call can cost, as a function of its output limit: `fixed + output_limit * per_output_token`.

    Both are integers of nano-dollars times `divisor`.
    """

    fixed: int
    """All of the input at the dearest rate that it can trigger, and what the call costs by itself."""
    per_output_token: int
    """One token of the limit, all choices together."""
    divisor: int

    def nanos(self, output_limit: int) -> int:
        """The bound for this output limit in nano-dollars, rounded up."""
        return -(-(self.fixed + self.per_output_token * output_limit) // self.divisor)

    def affordable(self, nanos: int) -> int | None:
        """The largest output limit whose bound is within this money; None: any; negative: not even the input is paid."""
        left = nanos * self.divisor - self.fixed
        if self.per_output_token == 0:
            return None if left >= 0 else -1
        return left // self.per_output_token


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
    input_side, output_side = _INPUT_SIDE, _OUTPUT_SIDE
    for unit in extra_units:
        if units.PART_OF.get(unit) == units.INPUT:
            input_side = (*input_side, unit)
        elif units.PART_OF.get(unit) == units.OUTPUT:
            output_side = (*output_side, unit)
    total = _price(units.INPUT, input_tokens, rates.highest_scaled(input_side, input_tokens))
    total += _price(units.PER_REQUEST, 1, rates.highest_scaled(_PER_REQUEST, input_tokens))
    for unit, count in (fixed or {}).items():
        total += _price(unit, count, rates.highest_scaled((unit,), input_tokens))
    per_token = _price(units.OUTPUT, max(1, choices), rates.highest_scaled(output_side, input_tokens))
    return Bound(fixed=total, per_output_token=per_token, divisor=rates.scale * _PER_MILLION)


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


def _price(unit: str, count: int, scaled_rate: int) -> int:
    """Nano-dollars times the rates' scale times a million."""
    return count * scaled_rate * (NANOS if unit in _TOKEN_UNITS else NANOS * _PER_MILLION)


def _half_even(value: int, divisor: int) -> int:
    """The quotient, rounded half to even."""
    quotient, rest = divmod(value, divisor)
    return quotient + (2 * rest > divisor or (2 * rest == divisor and quotient % 2 == 1))
