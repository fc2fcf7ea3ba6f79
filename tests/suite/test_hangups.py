"""Callers who leave before the end of their answer."""

from __future__ import annotations

import asyncio

import aiohttp

from tests.suite.audit import open_holds
from tests.suite.load import call
from tests.suite.stack import wait_for


async def test_callers_who_hang_up_are_charged_for_what_was_generated(fresh):
    suite = fresh("auth", "proxy")
    token = suite.token(max_amount=10)
    async with aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=0.7)) as session:
        await asyncio.gather(*(impatient(session, suite.stack.base_url, token) for _ in range(10)))
    wait_for("all are reported", lambda: open_holds(suite.stack.database) == 0, seconds=10)
    seen = suite.provider.calls()
    assert len(seen) == 10
    assert all(one.saw_abort and one.ended_at - one.accepted_at < 2.5 for one in seen)
    rows = {row["user_agent"].removeprefix("nonce/"): row for row in suite.calls(token)}
    for one in seen:
        row = rows[one.nonce]
        assert (row["state"], row["usage_source"]) == ("settled", "estimated")
        assert 0 < row["cost_nanos"] <= row["held_nanos"]
        assert abs(row["output_tokens"] - one.tokens_generated) <= max(3, 0.4 * one.tokens_generated), (row, one)


async def impatient(session: aiohttp.ClientSession, base_url: str, token: str) -> None:
    try:
        await call(session, base_url, token, model="gpt-test", stream=True, prompt="tokens:100 chunks:100 seconds:10")
    except TimeoutError:
        return
    raise AssertionError("the stream was to take longer than the caller waits")
