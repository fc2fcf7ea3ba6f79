"""A strict budget is not exceeded, whatever runs at once, and never locks out money that is there."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.suite.audit import audit, open_holds
from tests.suite.conftest import CENT, Installation
from tests.suite.load import Told, calls, patient_calls
from tests.suite.stack import wait_for

CALLS = int(os.environ.get("GATEWAY_TEST_CALLS", "150"))  # the full race: 500
DOLLARS = CALLS / 500  # so that a fifth of them fit
FIT = CALLS // 5


def passed(told: list[Told]) -> int:
    return sum(one.whole for one in told)


def outcome(told: list[Told]) -> Counter[str]:
    return Counter(f"{one.status} {one.code}" for one in told)


def settled(suite: Installation) -> None:
    wait_for("all calls are reported", lambda: open_holds(suite.stack.database) == 0, seconds=10)
    assert audit(suite.stack.database, suite.provider.ledger, CENT).problems == [], suite.stack.log_tails()
    assert suite.stack.gateway("reconcile").stdout.strip().endswith("0 differences")


@pytest.fixture
def race(fresh) -> Installation:
    return fresh("auth", "proxy")


@pytest.mark.parametrize("stream", [False, True])
async def test_of_many_calls_of_a_cent_at_once_as_many_pass_as_there_are_cents(race, stream):
    token = race.token(max_amount=DOLLARS)
    prompt = "tokens:20 chunks:20 seconds:1" if stream else "tokens:5"
    told = await calls(race.stack.base_url, token, CALLS, at_once=CALLS, model="cent", stream=stream, prompt=prompt)
    assert FIT - 1 <= passed(told) <= FIT, outcome(told)
    assert set(outcome(told)) <= {"200 ", "402 insufficient_quota", "429 budget_reserved"}
    assert len(race.provider.calls()) == passed(told)
    settled(race)
    assert race.row(token)["period_spent_nanos"] == passed(told) * 10_000_000


async def test_calls_one_after_another_all_pass_until_the_last_cent(race):
    token = race.token(max_amount=DOLLARS)
    told = await calls(race.stack.base_url, token, FIT, at_once=1, model="cent")
    assert outcome(told) == {"200 ": FIT}
    [last] = await calls(race.stack.base_url, token, 1, at_once=1, model="cent")
    assert (last.status, last.code) == (402, "insufficient_quota")
    settled(race)


async def test_calls_without_a_limit_that_honour_retry_after_all_pass_while_money_is_left(race):
    """A call costs a cent (100 tokens at $100 a million) and would hold as much as its model can write."""
    token = race.token(max_amount=DOLLARS)
    told = await patient_calls(race.stack.base_url, token, CALLS, seconds=60, model="tenth", prompt="tokens:100")
    assert FIT - 1 <= passed(told) <= FIT, outcome(told)
    wait_for("all calls are reported", lambda: open_holds(race.stack.database) == 0, seconds=10)
    spent = race.row(token)["period_spent_nanos"]
    assert DOLLARS * 1e9 - 20_000_000 <= spent <= DOLLARS * 1e9
    assert race.stack.gateway("reconcile").stdout.strip().endswith("0 differences")
