"""What only the outbox of a dead proxy knows reaches the ledger, exactly, through the next proxy."""

from __future__ import annotations

import asyncio

import aiohttp

from tests.suite.audit import audit, open_holds
from tests.suite.conftest import RATES
from tests.suite.load import call
from tests.suite.stack import wait_for

SLOW = "unique:1 tokens:20 chunks:20 seconds:1.5"


async def test_answers_given_while_auth_was_away_are_charged_exactly_though_the_proxy_died_before_it_came_back(fresh):
    suite = fresh("auth", "proxy")
    token = suite.token(max_amount=10)
    async with aiohttp.ClientSession(trust_env=False) as session:
        running = [
            asyncio.create_task(
                call(session, suite.stack.base_url, token, model="gpt-test", stream=bool(number % 2), prompt=SLOW)
            )
            for number in range(6)
        ]
        await asyncio.to_thread(wait_for, "all are upstream", lambda: len(suite.provider.calls()) == 6)
        suite.stack.kill("auth")
        told = await asyncio.gather(*running)
    assert all(one.whole for one in told)
    suite.stack.kill("proxy")
    assert open_holds(suite.stack.database) == 6
    suite.stack.start("auth", "proxy")
    # The lease alone would take a minute, and would charge the holds.
    wait_for("all are settled", lambda: open_holds(suite.stack.database) == 0, seconds=20)
    findings = audit(suite.stack.database, suite.provider.ledger, RATES, answered={one.nonce for one in told})
    assert findings.problems == []
    assert findings.exact == 6
