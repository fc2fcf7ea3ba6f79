"""auth away: nothing passes unchecked, nothing that runs is lost, and nobody restarts anything when it is back."""

from __future__ import annotations

import asyncio
import time

import aiohttp

from tests.suite.audit import audit, open_holds
from tests.suite.conftest import RATES
from tests.suite.load import call, calls
from tests.suite.stack import wait_for


async def test_while_auth_is_stopped_calls_get_503_in_time_and_nothing_goes_upstream(fresh):
    suite = fresh("auth", "proxy")
    token = suite.token()
    [before] = await calls(suite.stack.base_url, token, 1, at_once=1, model="gpt-test")
    assert before.whole
    suite.stack.stop("auth")
    for secret in (token, "not-a-token-of-this-gateway"):
        told = await calls(suite.stack.base_url, secret, 20, at_once=20, model="gpt-test")
        assert {(one.status, one.code) for one in told} == {(503, "auth_unavailable")}
        assert max(one.seconds for one in told) <= 1.2
        assert all(one.retry_after for one in told)
    assert len(suite.provider.calls()) == 1
    assert suite.stack.status("/healthz") == 200
    wait_for("the proxy says that it is not ready", lambda: suite.stack.status("/readyz") == 503, seconds=6)

    suite.stack.start("auth")
    wait_for("auth listens", lambda: suite.stack.listens(suite.stack.auth_port))
    started = time.monotonic()
    async with aiohttp.ClientSession(trust_env=False) as session:
        while not (await call(session, suite.stack.base_url, token, model="gpt-test")).whole:
            assert time.monotonic() - started < 2
    suite.stack.wait_until_ready(5)


async def test_streams_that_are_open_when_auth_goes_away_finish_and_are_charged(fresh):
    suite = fresh("auth", "proxy")
    token = suite.token(max_amount=10)
    async with aiohttp.ClientSession(trust_env=False) as session:
        streams = [
            asyncio.create_task(
                call(
                    session,
                    suite.stack.base_url,
                    token,
                    model="gpt-test",
                    stream=True,
                    prompt="unique:1 tokens:30 chunks:30 seconds:3",
                )
            )
            for _ in range(10)
        ]
        await asyncio.to_thread(wait_for, "all are upstream", lambda: len(suite.provider.calls()) == 10)
        suite.stack.kill("auth")
        told = await asyncio.gather(*streams)
    assert all(one.whole for one in told)
    assert open_holds(suite.stack.database) == 10
    suite.stack.start("auth")
    wait_for("all are reported", lambda: open_holds(suite.stack.database) == 0, seconds=15)
    findings = audit(suite.stack.database, suite.provider.ledger, RATES, answered={one.nonce for one in told})
    assert findings.problems == []
    assert findings.exact == 10


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
