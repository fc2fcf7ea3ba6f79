"""Explaining: the decision is that of admission, and every rule is told with what it looks at."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import Refusal
from gateway.explain import Verdict, explain
from gateway.limits import Window
from gateway.pricing import Rates
from gateway.quota import LAST_RULE, RULES, Call, Grant, PricedCandidate, TokenState, admit, judge

NOW = datetime(2026, 11, 25, 13, 37, 42, tzinfo=UTC)
DOLLAR = 1_000_000_000
ROUND = PricedCandidate("demo", "round", 3, Rates.from_json('{"input":"1000","output":"1000"}'), 4_000, 2_000)
DEAR = replace(ROUND, provider="other", price_id=4, rates=Rates.from_json('{"input":"2000","output":"3000"}'))
OPEN = replace(ROUND, provider="third", context_window=None, max_output_tokens=None)
UNPRICED = PricedCandidate("fourth", "round")

small = st.integers(0, 3)


def mostly(usual, *odd):
    """So many usual values that many a call comes to the last rule."""
    return st.sampled_from([*[usual] * 9, *odd])


tokens = st.builds(
    TokenState,
    id=st.just(7),
    enabled=mostly(True, False),
    expires_at=mostly(None, "2026-11-25", "2026-11-24", "never"),
    allowed_models=mostly("ro*", None, "", "gpt-4"),
    max_amount_nanos=st.none() | st.integers(0, 4 * DOLLAR),
    strict=st.booleans(),
    period_spent_nanos=mostly(0, DOLLAR // 3, 2 * DOLLAR),
    held_nanos=st.sampled_from([0, DOLLAR // 3]),
    budget_period=st.sampled_from(["total", "daily", "monthly"]),
    allowed_ips=mostly(None, "10.0.0.0/8"),
    window=st.builds(
        Window,
        requests_per_minute=mostly(None, 0, 1, 2),
        tokens_per_minute=mostly(None, 0, 1, 2),
        max_parallel_requests=mostly(None, 0, 1, 2),
        open_calls=small,
        window_start=st.just("2026-11-25T13:37:00.000000Z"),
        window_requests=small,
        window_tokens=small,
    ),
)
calls = st.builds(
    Call,
    request_model=st.just("round"),
    input_token_ceiling=st.integers(0, 3_000),
    max_output_tokens=st.none() | st.integers(1, 3_000),
    choices=st.integers(1, 2),
    thinking_budget_tokens=st.sampled_from([0, 500]),
    input_unbounded=mostly(False, True),
    unbounded_features=mostly((), ("web_search",)),
    units=mostly((), ("per_image",)),
    client_ip=st.sampled_from(["", "10.0.0.9", "192.0.2.1"]),
)
candidates = st.lists(st.sampled_from([ROUND, ROUND, DEAR, DEAR, OPEN, UNPRICED]), min_size=1, max_size=3)


def rich(**changes):
    """A token of four dollars that no other rule stops."""
    return TokenState(**{
        "id": 7, "enabled": True, "expires_at": None, "allowed_models": None, "max_amount_nanos": 4 * DOLLAR, "strict": True,
        "period_spent_nanos": 0, "held_nanos": 0,
    } | changes)  # fmt: skip


# Few of the random ones come to the last rule with several places, or are refused by it.
@settings(max_examples=200)
@example(rich(), Call("round", 10, 50), [ROUND, DEAR])
@example(rich(), Call("round", 10, 50), [DEAR, ROUND])
@example(rich(strict=False), Call("round", 10), [ROUND, DEAR])
@example(rich(), Call("round", 10), [ROUND, OPEN])
@example(rich(), Call("round", 3_000, 2_000), [ROUND, DEAR])
@example(rich(held_nanos=3 * DOLLAR), Call("round", 800, 500), [ROUND, DEAR])
@given(tokens, calls, candidates)
def test_the_decision_explained_is_the_decision_made(token, call, places):
    token.roll(NOW)
    told = explain(token, call, places, NOW)
    assert told.decision == admit(token, call, places, NOW)
    refusing = [judged for judged in told.rules if judged.verdict is Verdict.REFUSE]
    if isinstance(told.decision, Grant):
        assert refusing == []
        assert max(told.holds) == told.decision.held_nanos
    else:
        assert [judged.refusal for judged in refusing] == [told.decision]
        before = told.rules[: told.rules.index(refusing[0])]
        assert {judged.verdict for judged in before} == {Verdict.PASS}
    assert all((judged.refusal is not None) == (judged.verdict in {"refuse", "would_refuse"}) for judged in told.rules)


@given(tokens, calls)
def test_a_look_meets_the_first_rules_of_a_call_alone(token, call):
    token.roll(NOW)
    refusal = judge(token, call, NOW)
    told = {judged.rule: judged for judged in explain(token, call, [ROUND], NOW).rules}
    of_token = ["enabled", "not_expired", "address_allowed", "budget_left", "model_allowed"]
    first = next((told[rule].refusal for rule in of_token if told[rule].refusal is not None), None)
    assert refusal == first


def test_every_rule_is_told_in_its_order_with_its_limit_and_its_value():
    window = Window(60, 1000, 5, 3, None, 0, 0)
    token = TokenState(
        7, True, "2026-12-31", "ro*", 5 * DOLLAR, True, DOLLAR, DOLLAR // 10, "monthly", None, "10.0.0.0/8", window
    )
    token.roll(NOW)
    token.window.window_requests, token.window.window_tokens = 12, 400
    told = explain(token, Call("round", input_token_ceiling=10, max_output_tokens=50, client_ip="10.0.0.9"), [ROUND], NOW)
    assert told.decision == Grant(60_000_000, None)
    assert [judged.rule for judged in told.rules] == ["token_known", *(name for name, _ in RULES), LAST_RULE]
    assert [(judged.limit, judged.value) for judged in told.rules] == [
        ("none", "token 7"),
        ("none", "on"),
        ("2026-12-31", "now 2026-11-25T13:37:42.000000Z"),
        ("10.0.0.0/8", "10.0.0.9"),
        ("5 USD monthly, strict", "1 USD spent since 2026-11-01T00:00:00.000000Z, starts anew 2026-12-01T00:00:00.000000Z"),
        ("ro*", "round"),
        ("5", "3 of 5 open"),
        ("60", "12 of 60 since 2026-11-25T13:37:00.000000Z"),
        ("1000", "400 of 1000 since 2026-11-25T13:37:00.000000Z"),
        ("strict budget", "nothing without an upper bound"),
        ("strict budget", "price 3"),
        ("strict budget", "at most 10 tokens"),
        ("5 USD monthly, strict", "left 4 USD, held 0.1 USD, needs 0.06 USD"),
    ]


def test_a_token_that_breaks_every_rule_is_told_all_of_them_at_once():
    window = Window(0, 0, 0, 0)
    token = TokenState(7, False, "2026-11-24", "gpt-4", DOLLAR, True, DOLLAR, 0, "total", None, "10.0.0.0/8", window)
    token.roll(NOW)
    asked = Call("round", input_unbounded=True, unbounded_features=("web_search",), client_ip="192.0.2.1")
    told = explain(token, asked, [UNPRICED], NOW)
    assert isinstance(told.decision, Refusal)
    verdicts = [judged.verdict for judged in told.rules]
    assert verdicts == ["pass", "refuse", *["would_refuse"] * (len(RULES) - 1), "not_computed"]
    assert [judged.refusal.reason for judged in told.rules if judged.refusal is not None] == [
        "TOKEN_DISABLED",
        "TOKEN_EXPIRED",
        "IP_NOT_ALLOWED",
        "BUDGET_EXHAUSTED",
        "MODEL_NOT_ALLOWED",
        "RATE_LIMITED",
        "RATE_LIMITED",
        "RATE_LIMITED",
        "UNBOUNDED_REQUEST",
        "MODEL_NOT_PRICED",
        "UNBOUNDED_REQUEST",
    ]
