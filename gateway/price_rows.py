"""What is put into the price book: rows of prices, and the providers that they are for."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.pricing import Rates


@dataclass(frozen=True, slots=True)
class PriceRow:
    """One row to put into the book."""

    provider: str
    """The provider's name; empty: any."""
    model: str
    pattern: str
    """JSON: which names the row is for, in the match clauses of genai-prices, or `{"glob": "gpt-*"}`."""
    rates: Rates
    context_window: int | None = None
    max_output_tokens: int | None = None
    valid_from: str = ""
    """ISO text of the moment from which it holds; empty: always."""


@dataclass(frozen=True, slots=True)
class ProviderRow:
    """A provider of the configuration, without its keys."""

    name: str
    kind: str
    price_provider: str
    models: tuple[str, ...]
