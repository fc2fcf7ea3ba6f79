"""Corrections and prices as the HTTP door gives and takes them: JSON and queries, and the messages of `gateway.admin.v1`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from multidict import MultiMapping

from gateway.clock import parse_beginning
from gateway.money import CURRENCY, signed_nanos, to_json_number
from gateway.stubs.admin.v1 import adjustments_pb2, prices_pb2
from services.proxy import admin_log
from services.proxy.admin_json import moment_to_json, read_text, refusal, require_known

ADJUSTMENT = ("amount", "reason", "request_id")
"""The members of a correction."""
PRICE = ("model", "provider", "rates", "context_window", "max_output_tokens", "valid_from", "request_id")
"""The members of a price."""
PRICE_PARAMETERS = ("provider", "model", "source", "retired", "page_size", "page_token", "cursor")


# -- corrections --------------------------------------------------------------------------------------------------------------


def adjustments_from_query(token_id: int, query: MultiMapping[str]) -> adjustments_pb2.ListAdjustmentsRequest:
    """Which corrections a query asks for. Raises InvalidRequest."""
    given = admin_log.parameters(query, ("page_size", "page_token", "cursor"))
    return adjustments_pb2.ListAdjustmentsRequest(token_id=token_id, **admin_log.page(given))


def adjustment_from_json(token_id: int, members: Mapping[str, Any]) -> adjustments_pb2.CreateAdjustmentRequest:
    """`{"amount": -1.5, "reason": "..."}`, with a `request_id` where wanted. Raises InvalidRequest."""
    require_known(members, ADJUSTMENT)
    amount = members.get("amount")
    if isinstance(amount, bool) or not isinstance(amount, (int, float, Decimal)):
        raise refusal("amount", "takes a number in currency units, such as -1.5, which gives back")
    try:
        nanos = signed_nanos(amount)
    except (ValueError, ArithmeticError) as error:
        raise refusal("amount", f"is wrong: {error}") from None
    return adjustments_pb2.CreateAdjustmentRequest(
        token_id=token_id,
        amount_nanos=nanos,
        reason=read_text(members, "reason", required=True),
        request_id=read_text(members, "request_id"),
    )


def adjustment_to_json(adjustment: adjustments_pb2.Adjustment) -> dict[str, Any]:
    """A correction, its amount in currency units."""
    return {
        "id": adjustment.id,
        "token_id": adjustment.token_id,
        "amount": to_json_number(adjustment.amount_nanos),
        "currency": CURRENCY,
        "reason": adjustment.reason,
        "actor": adjustment.actor,
        "created_at": moment_to_json(adjustment.created_at),
    }


def booked_to_json(answer: adjustments_pb2.CreateAdjustmentResponse) -> dict[str, Any]:
    """A correction that was booked, and what the token has spent now."""
    return adjustment_to_json(answer.adjustment) | {"amount_spent": to_json_number(answer.amount_spent_nanos)}


# -- prices -------------------------------------------------------------------------------------------------------------------


def prices_from_query(query: MultiMapping[str]) -> prices_pb2.ListPricesRequest:
    """Which rows of the book a query asks for. Raises InvalidRequest."""
    given = admin_log.parameters(query, PRICE_PARAMETERS)
    if given.get("retired", "false") not in {"true", "false"}:
        raise refusal("retired", "takes true or false")
    return prices_pb2.ListPricesRequest(
        provider=given.get("provider", ""),
        model=given.get("model", ""),
        source=given.get("source", ""),
        with_retired=given.get("retired") == "true",
        **admin_log.page(given),
    )


def price_from_json(members: Mapping[str, Any]) -> prices_pb2.CreatePriceRequest:
    """`{"model": "m", "rates": {"input": "1.00", "output": "2.00"}}` and what else is wanted. Raises InvalidRequest."""
    require_known(members, PRICE)
    given = {name: value for name, value in members.items() if value is not None}
    request = prices_pb2.CreatePriceRequest(
        request_id=read_text(given, "request_id"),
        provider=read_text(given, "provider"),
        model=read_text(given, "model", required=True),
        rates=_rates(given.get("rates")),
    )
    for name in ("context_window", "max_output_tokens"):
        if name in given:
            setattr(request, name, _count(name, given[name]))
    if (begins := _beginning(read_text(given, "valid_from"))) is not None:
        request.valid_from.FromDatetime(begins)
    return request


def price_to_json(price: prices_pb2.Price) -> dict[str, Any]:
    """A row of the book. A rate with tiers is a list: the rate, then [tokens above which it holds, rate] of each."""
    return {
        "id": price.id,
        "provider": price.provider or None,
        "model": price.model,
        "pattern": json.loads(price.pattern_json) if price.pattern_json else None,
        "rates": {
            rate.unit: [rate.amount, *([tier.above_input_tokens, tier.amount] for tier in rate.tiers)]
            if rate.tiers
            else rate.amount
            for rate in price.rates
        },
        "currency": CURRENCY,
        "context_window": price.context_window if price.HasField("context_window") else None,
        "max_output_tokens": price.max_output_tokens if price.HasField("max_output_tokens") else None,
        "valid_from": moment_to_json(price.valid_from) if price.HasField("valid_from") else None,
        "source": price.source,
        "created_at": moment_to_json(price.created_at),
        "retired_at": moment_to_json(price.retired_at) if price.HasField("retired_at") else None,
    }


def _rates(value: Any) -> list[prices_pb2.Rate]:
    if not isinstance(value, dict) or not value:
        raise refusal("rates", 'takes an object such as {"input": "1.00", "output": "2.00"}')
    return [_rate(unit, given) for unit, given in value.items()]


def _rate(unit: str, given: Any) -> prices_pb2.Rate:
    base, *tiers = given if isinstance(given, list) and given else [given]
    try:
        whole = all(len(tier) == 2 and isinstance(tier[1], str) for tier in tiers)
    except TypeError:
        whole = False
    if not isinstance(base, str) or not whole:
        raise refusal("rates", f'takes a decimal in quotes for {unit[:100]}, such as "2.50"')
    return prices_pb2.Rate(
        unit=unit,
        amount=base,
        tiers=[prices_pb2.RateTier(above_input_tokens=_count("rates", above), amount=amount) for above, amount in tiers],
    )


def _beginning(text: str) -> datetime | None:
    if not text:
        return None
    try:
        return parse_beginning(text)
    except (ValueError, OverflowError) as error:
        raise refusal("valid_from", f"is wrong: {error}") from None


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise refusal(name, "takes a whole number of tokens")
    return value
