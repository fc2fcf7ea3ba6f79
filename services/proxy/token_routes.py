"""`GET /v1/token/usage` and `/v1/token/balance`: what the holder of a token may know."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.clock import to_text
from gateway.money import CURRENCY, to_json_number
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.answers import json_answer
from services.proxy.credentials import client_token
from services.proxy.exchange import Exchange
from services.proxy.gate import Gate


class TokenRoutes:
    """The handlers. A disabled, expired or spent token may read both."""

    def __init__(self, *, gate: Gate) -> None:
        self._gate = gate

    async def usage(self, exchange: Exchange) -> web.StreamResponse:
        """Totals, models and the last calls. Raises GatewayError."""
        books = await self._books(exchange, details=True)
        return json_answer(
            {
                "total_tokens": books.total_tokens,
                "prompt_tokens": books.prompt_tokens,
                "completion_tokens": books.completion_tokens,
                "amount_spent": to_json_number(books.amount_spent_nanos),
                "max_amount": _optional(books, "max_amount_nanos"),
                "remaining": _optional(books, "remaining_nanos"),
                "held": to_json_number(books.held_nanos),
                **_limits(books),
                "currency": CURRENCY,
                "status": books.status,
                "models": [
                    {
                        "model": model.model,
                        "requests": model.requests,
                        "total_tokens": model.total_tokens,
                        "amount_spent": to_json_number(model.amount_spent_nanos),
                    }
                    for model in books.models
                ],
                "recent": [
                    {
                        "request_id": call.request_id,
                        "at": _moment(call),
                        "model": call.model,
                        "tokens": call.tokens,
                        "amount": to_json_number(call.amount_nanos),
                        "status": call.status,
                    }
                    for call in books.recent
                ],
            }
        )

    async def balance(self, exchange: Exchange) -> web.StreamResponse:
        """The budget and what is left of it. Raises GatewayError."""
        books = await self._books(exchange, details=False)
        return json_answer(
            {
                "amount_spent": to_json_number(books.amount_spent_nanos),
                "max_amount": _optional(books, "max_amount_nanos"),
                "remaining": _optional(books, "remaining_nanos"),
                "held": to_json_number(books.held_nanos),
                **_limits(books),
                "status": books.status,
            }
        )

    async def _books(self, exchange: Exchange, *, details: bool) -> pb.GetTokenUsageResponse:
        token = client_token(exchange.request.headers)
        return await self._gate.usage(token, exchange.address, details=details)


def _limits(books: pb.GetTokenUsageResponse) -> dict[str, Any]:
    """When the budget starts anew, and the other limits: None for one that the token does not have."""
    limits: dict[str, Any] = {"requests_per_minute": None, "tokens_per_minute": None, "max_parallel_requests": None}
    for limit in books.rate_limits:
        limits[limit.name] = {
            "limit": limit.limit,
            "remaining": limit.remaining,
            "resets_at": to_text(limit.resets_at.ToDatetime()),
        }
    if books.HasField("max_parallel_requests"):
        most = books.max_parallel_requests
        limits["max_parallel_requests"] = {"limit": most, "remaining": max(0, most - books.open_calls)}
    return {
        "resets_at": to_text(books.resets_at.ToDatetime()) if books.HasField("resets_at") else None,
        "budget_period": books.budget_period,
        "limits": limits,
    }


def _optional(books: pb.GetTokenUsageResponse, field: Any) -> float | None:
    return to_json_number(getattr(books, field)) if books.HasField(field) else None


def _moment(call: pb.RecentCall) -> str:
    return to_text(call.at.ToDatetime())
