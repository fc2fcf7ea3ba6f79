"""What an answer says that it cost is what the ledger charges, to the nano-dollar, whatever the provider says of its usage."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import aiohttp
import pytest


@pytest.mark.parametrize("model", ["plain", "no-usage", "usage-partial", "usage-negative", "usage-dear"])
def test_the_cost_that_is_told_is_the_cost_that_is_charged(suite, model):
    token = suite.token(max_amount=5)
    told = asyncio.run(_told(suite.stack.base_url, token, f"mock-{model}"))
    [call] = suite.calls(token)
    assert Decimal(told) * 10**9 == call["cost_nanos"]
    assert call["cost_nanos"] > 0


async def _told(base_url: str, token: str, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "tokens:20"}], "max_tokens": 64}
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{base_url}/chat/completions", json=body, headers=headers) as answer,
    ):
        assert answer.status == 200
        return answer.headers["x-gateway-cost"]
