"""A token's limits with all services up: exact to the call, and told to the SDK in the words that it knows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from datetime import UTC, datetime

import aiohttp
import openai
import pytest

from tests.fakes.call import Call
from tests.suite.audit import open_holds
from tests.suite.conftest import Installation
from tests.suite.load import Told, call
from tests.suite.stack import wait_for
from tests.suite.test_administration import CHAT, http_call
from tests.suite.test_replicas import FOUR, both, over, replicated  # noqa: F401 - a fixture
from tests.suite.test_sdk import sdk

LONGEST = 30  # seconds of a minute that the calls of one test may take


def early_in_a_minute() -> None:
    """Waits for a minute in which there is time for a test's calls."""
    seconds = datetime.now(UTC).second
    if seconds > 60 - LONGEST:
        time.sleep(60.5 - seconds)


def outcome(told: list[Told]) -> Counter[str]:
    return Counter(f"{one.status} {one.code}" for one in told)


async def at_once(suite: Installation, token: str, count: int, **fields: object) -> list[Told]:
    """So many calls at once, over all proxies in turns."""
    ports = both(suite)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
        urls = [f"http://127.0.0.1:{ports[n % len(ports)]}/v1" for n in range(count)]
        return await asyncio.gather(*(call(session, url, token, model="gpt-test", **fields) for url in urls))  # type: ignore[arg-type] # the test's own fields


def most_open(calls: list[Call]) -> int:
    """How many of the provider's calls were open at one moment, at the most."""
    moments = [(one.accepted_at, 1) for one in calls] + [(one.ended_at, -1) for one in calls]
    now = most = 0
    for _, step in sorted(moments):
        now += step
        most = max(most, now)
    return most


@over("sqlite", "postgres")
async def test_of_80_calls_at_once_over_two_proxies_and_two_auths_60_a_minute_pass(replicated):  # noqa: F811 - the fixture
    suite = replicated(*FOUR)
    token = suite.token(requests_per_minute=60)
    early_in_a_minute()
    told = await at_once(suite, token, 80)
    assert outcome(told) == {"200 ": 60, "429 rate_limit_exceeded": 20}
    assert len(suite.provider.calls()) == 60
    with sdk(suite, token) as client, pytest.raises(openai.RateLimitError) as refused:
        client.with_options(max_retries=0).chat.completions.create(**CHAT)
    headers, error = refused.value.response.headers, refused.value.body
    assert (error["code"], headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == (
        "rate_limit_exceeded",
        "60",
        "0",
    )
    assert headers["x-ratelimit-reset-requests"] == f"{headers['retry-after']}s"
    assert "60 calls a minute" in error["message"] and "UTC" in error["message"]
    settled(suite)


@over("sqlite", "postgres")
@pytest.mark.parametrize("stream", [False, True])
async def test_five_in_parallel_are_never_six_upstream(replicated, stream):  # noqa: F811 - the fixture
    suite = replicated(*FOUR)
    token = suite.token(max_parallel_requests=5)
    told: list[Told] = []
    for _ in range(3):
        told += await at_once(suite, token, 24, stream=stream, prompt="unique:1 tokens:10 seconds:0.3")
        suite.calls(token)  # all of them have been reported
    passed = [one for one in told if one.status == 200]
    assert set(outcome(told)) == {"200 ", "429 rate_limit_exceeded"}
    assert 15 <= len(passed) == len(suite.provider.calls())
    assert all(one.retry_after == "1" for one in told if one.status == 429)
    assert most_open(suite.provider.calls()) == 5
    settled(suite)


def settled(suite: Installation) -> None:
    wait_for("all calls are reported", lambda: open_holds(suite.stack.database) == 0, seconds=10)
    assert suite.stack.gateway("reconcile").stdout.strip().endswith("0 differences")


@contextlib.contextmanager
def refused(kind: type[openai.APIStatusError], code: str):
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.code == code


def test_a_token_of_another_address_opens_nothing_and_tells_nothing(suite):
    token = suite.token(allowed_ips="192.0.2.0/24")
    with sdk(suite, token) as client:
        with refused(openai.PermissionDeniedError, "ip_not_allowed"):
            client.chat.completions.create(**CHAT)
        with refused(openai.PermissionDeniedError, "ip_not_allowed"):
            client.models.list()
    assert http_call(suite, "GET", "/v1/token/usage", token)[0] == 403
    ours = suite.token(allowed_ips="192.0.2.7, 127.0.0.0/8")
    assert http_call(suite, "POST", "/v1/chat/completions", ours, CHAT)[0] == 200


def test_what_is_left_of_each_limit_is_told_with_each_answer_and_in_the_books(suite):
    early_in_a_minute()
    token = suite.token(
        max_amount=1, budget_period="weekly", requests_per_minute=3, tokens_per_minute=10_000, max_parallel_requests=2
    )
    with sdk(suite, token) as client:
        for left in (2, 1, 0):
            answer = client.chat.completions.with_raw_response.create(**CHAT)
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
            assert 0 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 10_000
    suite.calls(token)
    _, books = http_call(suite, "GET", "/v1/token/usage", token)
    used = books["total_tokens"]
    assert books["limits"]["requests_per_minute"]["remaining"] == 0
    assert books["limits"]["tokens_per_minute"]["remaining"] == 10_000 - used
    assert books["limits"]["max_parallel_requests"] == {"limit": 2, "remaining": 2}
    assert (books["budget_period"], books["remaining"]) == ("weekly", 1 - books["amount_spent"])
    resets_at = datetime.fromisoformat(books["resets_at"])
    assert (resets_at.weekday(), resets_at.hour) == (0, 0)
    _, balance = http_call(suite, "GET", "/v1/token/balance", token)
    assert {name: balance[name] for name in ("resets_at", "budget_period", "limits")} == {
        name: books[name] for name in ("resets_at", "budget_period", "limits")
    }


def test_both_secrets_of_a_rotation_with_a_grace_time_open_the_same_books(suite):
    old = _token(suite.stack.gateway("token", "create", "--name", "graced", "--json").stdout)
    new = _token(suite.stack.gateway("token", "rotate", "graced", "--grace", "60", "--json").stdout)
    for secret in (old, new):
        assert http_call(suite, "POST", "/v1/chat/completions", secret, CHAT)[0] == 200
    assert len(suite.calls("graced")) == 2
    assert http_call(suite, "GET", "/v1/token/usage", old)[1] == http_call(suite, "GET", "/v1/token/usage", new)[1]
    last = _token(suite.stack.gateway("token", "rotate", "graced", "--json").stdout)
    statuses = [http_call(suite, "POST", "/v1/chat/completions", secret, CHAT)[0] for secret in (old, new, last)]
    assert statuses == [401, 401, 200]


def _token(line: str) -> str:
    return str(json.loads(line)["token"])
