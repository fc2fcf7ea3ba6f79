"""The built-in prices: genai-prices' table, and what it lacks. Read when a database is migrated, never on the path of a call.

Rates, match clauses and context windows are genai-prices' (its rows name their sources). It has no output ceilings: those below
are from the providers' model pages (OpenAI, Anthropic, Google, DeepSeek, Mistral), read in November 2026.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from gateway.clock import to_text
from gateway.patterns import matches
from gateway.price_rows import PriceRow
from gateway.pricing import Rate, Rates

_UNITS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "input_audio_mtok": "input_audio",
    "cache_audio_read_mtok": "cached_input_audio",
    "output_audio_mtok": "output_audio",
}

# The most that a model writes in one answer; the first pattern that matches counts.
_OUTPUT_CEILINGS: tuple[tuple[str, str, int], ...] = (
    ("openai", "gpt-5*", 128_000),
    ("openai", "gpt-4.1*", 32_768),
    ("openai", "gpt-4o*", 16_384),
    ("openai", "gpt-4-turbo*", 4_096),
    ("openai", "gpt-4-32k*", 32_768),
    ("openai", "gpt-4*", 8_192),
    ("openai", "gpt-3.5*", 4_096),
    ("openai", "o1-mini*", 65_536),
    ("openai", "o1-preview*", 32_768),
    ("openai", "o1*", 100_000),
    ("openai", "o3*", 100_000),
    ("openai", "o4-mini*", 100_000),
    ("openai", "text-embedding-*", 0),
    ("anthropic", "claude-3-opus*", 4_096),
    ("anthropic", "claude-3-haiku*", 4_096),
    ("anthropic", "claude-3-sonnet*", 4_096),
    ("anthropic", "claude-3-5*", 8_192),
    ("anthropic", "claude-3-7*", 64_000),
    ("anthropic", "claude-opus-4-0*", 32_000),
    ("anthropic", "claude-opus-4-1*", 32_000),
    ("anthropic", "claude-opus-4-5*", 64_000),
    ("anthropic", "claude-sonnet-4*", 64_000),
    ("anthropic", "claude-haiku-4*", 64_000),
    ("google", "gemini-1.5*", 8_192),
    ("google", "gemini-2.0*", 8_192),
    ("google", "gemini-2.5*", 65_536),
    ("deepseek", "deepseek-chat*", 8_192),
)

_DEMO = PriceRow(
    provider="demo",
    model="demo",
    pattern='{"equals":"demo"}',
    rates=Rates({"input": Rate(Decimal("1.00")), "output": Rate(Decimal("4.00"))}),
    context_window=32_768,
    max_output_tokens=1_024,
)


def builtin_rows() -> Iterator[PriceRow]:
    """The rows of the built-in table."""
    from genai_prices.data import providers  # noqa: PLC0415 - takes 0.7 s and 100 MB, and only a migration needs it

    yield _DEMO
    for provider in providers:
        for model in provider.models:
            pattern = json.dumps(_clause(model.match), separators=(",", ":"))
            for valid_from, rates in _prices(model.prices):
                if rates is not None:
                    ceiling = _output_ceiling(provider.id, model.id)
                    yield PriceRow(provider.id, model.id, pattern, rates, model.context_window, ceiling, valid_from)


def _prices(prices: Any) -> Iterable[tuple[str, Rates | None]]:
    """(valid from, rates) of a model; its variants by time of day become one row of the dearest rates."""
    if not isinstance(prices, list):
        return [("", _rates([prices]))]
    by_start: dict[str, list[Any]] = {}
    always: list[Any] = []
    for conditional in prices:
        constraint = conditional.constraint
        if constraint is not None and hasattr(constraint, "start_date"):
            start = to_text(datetime.combine(constraint.start_date, datetime.min.time(), UTC))
            by_start.setdefault(start, []).append(conditional.prices)
        else:
            always.append(conditional.prices)
    rows = {"": always, **by_start} if always else by_start
    return [(start, _rates(variants)) for start, variants in rows.items()]


def _rates(variants: list[Any]) -> Rates | None:
    rates: dict[str, Rate] = {}
    for variant in variants:
        for key, price in vars(variant).items():
            if price is None or key.startswith("_"):
                continue
            if key == "requests_kcount" and isinstance(price, Decimal):
                rate = Rate(price / 1000)
                unit = "per_request"
            elif key in _UNITS:
                unit = _UNITS[key]
                rate = _rate(price)
            else:
                continue
            known = rates.get(unit)
            rates[unit] = rate if known is None or rate.base > known.base else known
    return Rates(rates) if rates else None


def _rate(price: Any) -> Rate:
    if isinstance(price, Decimal):
        return Rate(price)
    return Rate(price.base, tuple(sorted((tier.start, tier.price) for tier in price.tiers)))


def _clause(match: Any) -> dict[str, Any]:
    kinds = {
        "ClauseStartsWith": "starts_with",
        "ClauseEndsWith": "ends_with",
        "ClauseContains": "contains",
        "ClauseRegex": "regex",
        "ClauseEquals": "equals",
        "ClauseOr": "or",
        "ClauseAnd": "and",
    }
    kind = kinds[type(match).__name__]
    if kind in ("or", "and"):
        return {kind: [_clause(part) for part in getattr(match, f"{kind}_")]}
    return {kind: getattr(match, kind)}


def _output_ceiling(provider: str, model: str) -> int | None:
    for maker, pattern, ceiling in _OUTPUT_CEILINGS:
        if provider == maker and matches(model, (pattern,)):
            return ceiling
    return None
