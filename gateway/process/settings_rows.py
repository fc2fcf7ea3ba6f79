"""The configuration's prices and providers as the rows that the database takes in. No key of a provider is in them."""

from __future__ import annotations

import json

from gateway.price_rows import PriceRow, ProviderRow
from gateway.pricing import Rate, Rates
from gateway.process.settings import Settings


def price_rows(settings: Settings) -> list[PriceRow]:
    """A row for each `[[prices]]`."""
    return [
        PriceRow(
            provider=price.provider or "",
            model=price.model,
            pattern=json.dumps({"glob": price.model}, separators=(",", ":")),
            rates=Rates({unit: Rate(rate) for unit, rate in price.rates.items()}),
            context_window=price.context_window,
            max_output_tokens=price.max_output_tokens,
        )
        for price in settings.prices
    ]


def provider_rows(settings: Settings) -> list[ProviderRow]:
    """A row for each provider, those that are there by themselves included."""
    return [
        ProviderRow(provider.name, provider.kind, provider.price_provider, tuple(provider.models))
        for provider in settings.providers
    ]
