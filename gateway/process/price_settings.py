"""The configuration's prices and providers as rows of the price book."""

from __future__ import annotations

import json

from gateway.price_rows import PriceRow, ProviderRow
from gateway.pricing import Rate, Rates
from gateway.process.settings import Settings


def price_rows(settings: Settings) -> list[PriceRow]:
    """`[[prices]]` of gateway.toml."""
    rows = []
    for price in settings.prices:
        rates = {unit: Rate(rate) for unit, rate in price.rates.items()}
        kind = "glob" if "*" in price.model else "equals"
        rows.append(
            PriceRow(
                provider=price.provider or "",
                model=price.model,
                pattern=json.dumps({kind: price.model.lower()}),
                rates=Rates(rates),
                context_window=price.context_window,
                max_output_tokens=price.max_output_tokens,
            )
        )
    return rows


def provider_rows(settings: Settings) -> list[ProviderRow]:
    """The providers that the configuration and the environment switch on, without their keys."""
    return [ProviderRow(p.name, p.kind, p.price_provider, p.models) for p in settings.providers]
