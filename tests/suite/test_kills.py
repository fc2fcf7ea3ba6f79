"""kill -9 of the proxy and of auth under load: nothing lost, nothing free, nothing twice."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from tests.suite.audit import audit, open_holds
from tests.suite.conftest import RATES
from tests.suite.load import steady_calls
from tests.suite.stack import wait_for

KILLS = int(os.environ.get("GATEWAY_TEST_KILLS", "2"))  # the full run: 20
AT_ONCE = 20
LEASE = 90.0  # seconds; 60 until a proxy's beat is missed, and the sweeper's own pace


@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize("victim", ["proxy", "auth"])
async def test_what_is_killed_and_started_again_leaves_the_books_exact(fresh, victim):
    suite = fresh("auth", "proxy")
    token = suite.token(max_amount=1000)
    chance = random.Random(os.environ.get("GATEWAY_TEST_SEED", "1"))
    over = False

    async def nemesis() -> None:
        nonlocal over
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.5, 2.5))
            suite.stack.kill(victim)
            await asyncio.sleep(chance.uniform(0, 0.3))
            suite.stack.start(victim)
            await asyncio.to_thread(suite.stack.wait_until_ready)
        await asyncio.sleep(1)
        over = True

    told, _ = await asyncio.gather(
        steady_calls(
            suite.stack.base_url,
            token,
            at_once=AT_ONCE,
            until=lambda: over,
            streams="unique:1 tokens:30 chunks:30 seconds:1.5",
            plain="unique:1 tokens:8 seconds:0.2",
            model="gpt-test",
        ),
        nemesis(),
    )
    wait_for("no hold is open", lambda: open_holds(suite.stack.database) == 0, seconds=LEASE)
    assert {one.status for one in told} <= {0, 200, 503}, suite.stack.log_tails()
    answered = {one.nonce for one in told if one.whole}
    findings = audit(suite.stack.database, suite.provider.ledger, RATES, answered=answered)
    print(victim, findings)  # shown by `pytest -rP`
    assert findings.problems == [], f"{findings}\n{suite.stack.log_tails()}"
    assert findings.unreported == 0, "what a dead proxy wrote down is reported by the next one"
    assert findings.accepted >= KILLS * AT_ONCE
    assert findings.estimated + findings.charged_without_call <= KILLS * AT_ONCE * (victim == "proxy"), findings
    assert suite.stack.gateway("reconcile").stdout.strip().endswith("0 differences")
