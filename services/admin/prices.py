"""PriceService: the price book, and an administrator's prices over it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import grpc

from gateway.errors import InvalidArgument
from gateway.pages import decode_page_token, page_limit
from gateway.price_rows import PriceRow
from gateway.pricing import Rates
from gateway.storage.price_list import ListedPrice, PriceFilter, PriceList, pattern_of
from gateway.stubs.admin.v1 import prices_pb2, prices_pb2_grpc
from services.admin.callers import actor
from services.admin.listing import fill_page, filter_text
from services.admin.wire import moment_from_proto, moment_to_proto

_LIST = "prices"
_LONGEST_RATE = 64
_MOST_TIERS = 20


class PriceServicer(prices_pb2_grpc.PriceServiceServicer):
    """Lists, adds and retires prices, each change in the name of the one who calls."""

    def __init__(self, *, prices: PriceList) -> None:
        self._prices = prices

    def ListPrices(self, request: prices_pb2.ListPricesRequest, context: grpc.ServicerContext) -> prices_pb2.ListPricesResponse:
        """A page of the book, the newest first."""
        limit = page_limit(request.page_size)
        after = decode_page_token(_LIST, request.page_token, int)
        before_id = None if after is None else int(after[0])
        wanted = PriceFilter(
            provider=filter_text("provider", request.provider),
            model=filter_text("model", request.model),
            source=filter_text("source", request.source),
            with_retired=request.with_retired,
        )
        found = self._prices.page(wanted, limit=limit + 1, before_id=before_id)
        prices, next_page_token = fill_page(_LIST, found, limit=limit, to_message=_to_proto, position=lambda price: (price.id,))
        return prices_pb2.ListPricesResponse(prices=prices, next_page_token=next_page_token)

    def CreatePrice(
        self, request: prices_pb2.CreatePriceRequest, context: grpc.ServicerContext
    ) -> prices_pb2.CreatePriceResponse:
        """Adds a price."""
        rates = _rates(request.rates)
        wanted = PriceRow(
            provider=request.provider,
            model=request.model,
            pattern=pattern_of(request.model),
            rates=rates,
            context_window=request.context_window if request.HasField("context_window") else None,
            max_output_tokens=request.max_output_tokens if request.HasField("max_output_tokens") else None,
        )
        valid_from: datetime | None = None
        if request.HasField("valid_from"):
            valid_from = moment_from_proto(request.valid_from, "valid_from")
        price = self._prices.create(wanted, valid_from, actor=actor(context), request_id=request.request_id)
        return prices_pb2.CreatePriceResponse(price=_to_proto(price), warnings=self._warnings(price))

    def RetirePrice(
        self, request: prices_pb2.RetirePriceRequest, context: grpc.ServicerContext
    ) -> prices_pb2.RetirePriceResponse:
        """Ends a price."""
        return prices_pb2.RetirePriceResponse(price=_to_proto(self._prices.retire(request.id, actor=actor(context))))

    def _warnings(self, price: ListedPrice) -> list[str]:
        warnings = []
        if price.provider and price.provider not in self._prices.providers():
            warnings.append(f"provider: no provider is called {price.provider!r} or priced as it now")
        for side, other in (("input", "output"), ("output", "input")):
            if price.rates.covers(side) and not price.rates.covers(other):
                warnings.append(f"rates: there is none for {other}, so that side is free")
        return warnings


def _rates(given: Iterable[prices_pb2.Rate]) -> Rates:
    document: dict[str, Any] = {}
    for rate in given:
        if rate.unit in document:
            raise _wrong(f"{rate.unit[:100]} stands twice")
        texts = [rate.amount, *(tier.amount for tier in rate.tiers)]
        if len(rate.tiers) > _MOST_TIERS or any(len(text) > _LONGEST_RATE for text in texts):
            raise _wrong(f"a rate has at most {_LONGEST_RATE} characters and {_MOST_TIERS} tiers")
        if any(tier.above_input_tokens <= 0 for tier in rate.tiers):
            raise _wrong("a tier begins above a number of tokens")
        tiers = [[tier.above_input_tokens, tier.amount] for tier in rate.tiers]
        document[rate.unit] = [rate.amount, *tiers] if tiers else rate.amount
    try:
        return Rates.from_json(json.dumps(document))
    except ValueError:
        raise _wrong('a rate is a decimal of 0 or more, such as "2.50"') from None


def _wrong(fault: str) -> InvalidArgument:
    return InvalidArgument(f"rates: {fault}", metadata={"param": "rates"})


def _to_proto(price: ListedPrice) -> prices_pb2.Price:
    message = prices_pb2.Price(
        id=price.id,
        provider=price.provider,
        model=price.model,
        pattern_json=price.pattern,
        rates=[_rate(unit, value) for unit, value in json.loads(price.rates.to_json()).items()],
        context_window=price.context_window,
        max_output_tokens=price.max_output_tokens,
        source=price.source,
        created_at=moment_to_proto(price.created_at),
    )
    if price.valid_from is not None:
        message.valid_from.FromDatetime(price.valid_from)
    if price.retired_at is not None:
        message.retired_at.FromDatetime(price.retired_at)
    return message


def _rate(unit: str, value: Any) -> prices_pb2.Rate:
    base, *tiers = value if isinstance(value, list) else [value]
    return prices_pb2.Rate(
        unit=unit,
        amount=base,
        tiers=[prices_pb2.RateTier(above_input_tokens=start, amount=amount) for start, amount in tiers],
    )
