"""Admission: what passes, what is refused and why, and that no money is locked out for good."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.pricing import Rates
from gateway.quota import Call, Grant, PricedCandidate, TokenState, TokenStatus, admit, status

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DOLLAR = 1_000_000_000
# A thousandth of a dollar a token, read or written: sums can be done in the head.
MODEL = PricedCandidate("demo", "demo", 1, Rates.from_json('{"input":"1000","output":"1000"}'), 100_000, 10_000)
TOKEN_PRICE = DOLLAR // 1000


def token(**changes):
    values = {
        "id": 7,
        "enabled": True,
        "expires_at": None,
        "allowed_models": None,
        "max_amount_nanos": DOLLAR,
        "strict": True,
        "period_spent_nanos": 0,
        "held_nanos": 0,
    }
    return TokenState(**values | changes)


def call(**changes):
    return Call(**{"request_model": "demo", "input_token_ceiling": 10} | changes)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"enabled": False}, errors.TokenDisabled),
        ({"expires_at": "2026-11-22"}, errors.TokenExpired),
        ({"expires_at": "not a day"}, errors.TokenExpired),
        ({"max_amount_nanos": 0}, errors.BudgetExhausted),
        ({"period_spent_nanos": DOLLAR}, errors.BudgetExhausted),
        ({"allowed_models": "gpt-4,claude-3"}, errors.ModelNotAllowed),
    ],
)
def test_a_token_that_may_not_is_told_why(changes, refusal):
    assert isinstance(admit(token(**changes), call(), [MODEL], NOW), refusal)


def test_a_day_without_a_time_holds_to_its_end_in_utc():
    at = token(expires_at="2026-11-23")
    assert status(at, datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC)) is TokenStatus.ACTIVE
    assert status(at, datetime(2026, 11, 24, 0, 0, 0, tzinfo=UTC)) is TokenStatus.EXPIRED


def test_what_fits_is_granted_as_asked_and_held_in_full():
    assert admit(token(), call(max_output_tokens=90), [MODEL], NOW) == Grant(100 * TOKEN_PRICE, None)


def test_a_stated_limit_is_held_for_every_choice():
    assert admit(token(), call(max_output_tokens=30, choices=3), [MODEL], NOW) == Grant(100 * TOKEN_PRICE, None)


def test_the_dearest_candidate_is_held():
    dear = PricedCandidate("other", "demo", 2, Rates.from_json('{"input":"2000","output":"2000"}'), 100_000, 10_000)
    assert admit(token(), call(max_output_tokens=90), [MODEL, dear], NOW) == Grant(200 * TOKEN_PRICE, None)


def test_without_a_stated_limit_the_grant_is_lowered_to_what_a_quarter_of_the_money_buys():
    rich = token(max_amount_nanos=8 * DOLLAR)
    decision = admit(rich, call(), [MODEL], NOW)
    assert decision == Grant(2000 * TOKEN_PRICE, 1990)


def test_with_no_call_in_flight_all_that_is_left_is_granted():
    decision = admit(token(period_spent_nanos=DOLLAR - 50 * TOKEN_PRICE), call(max_output_tokens=500), [MODEL], NOW)
    assert decision == Grant(50 * TOKEN_PRICE, 40)


def test_money_held_by_calls_in_flight_is_worth_waiting_for():
    decision = admit(token(held_nanos=DOLLAR - 50 * TOKEN_PRICE), call(max_output_tokens=500), [MODEL], NOW)
    assert isinstance(decision, errors.BudgetReserved)
    assert decision.retry_after == 1.0
    assert decision.metadata["remaining_nanos"] == str(DOLLAR)
    assert decision.metadata["held_nanos"] == str(DOLLAR - 50 * TOKEN_PRICE)


def test_what_can_never_fit_is_refused_at_once_even_while_money_is_held():
    big = call(input_token_ceiling=2000)
    for held in (0, DOLLAR // 2):
        decision = admit(token(held_nanos=held), big, [MODEL], NOW)
        assert isinstance(decision, errors.RequestExceedsBudget)
        assert decision.retry_after is None


def test_fewer_than_sixteen_tokens_are_no_answer():
    nearly = token(period_spent_nanos=DOLLAR - 25 * TOKEN_PRICE)
    assert isinstance(admit(nearly, call(), [MODEL], NOW), errors.RequestExceedsBudget)
    assert admit(nearly, call(max_output_tokens=5), [MODEL], NOW) == Grant(15 * TOKEN_PRICE, None)


def test_a_hostile_limit_is_held_at_the_models_ceiling_and_forced():
    rich = token(max_amount_nanos=100 * DOLLAR)
    assert admit(rich, call(max_output_tokens=10**12), [MODEL], NOW) == Grant(10_010 * TOKEN_PRICE, 10_000)


def test_a_model_whose_ceiling_nobody_knows_gets_one():
    unknown = PricedCandidate("x", "demo", 1, MODEL.rates, 4_000, None)
    rich = token(max_amount_nanos=100 * DOLLAR)
    assert admit(rich, call(), [unknown], NOW) == Grant(2_010 * TOKEN_PRICE, 2_000)
    nameless = PricedCandidate("x", "demo", 1, MODEL.rates, None, None)
    assert admit(rich, call(), [nameless], NOW) == Grant(4_106 * TOKEN_PRICE, 4_096)


def test_an_unpriced_model_passes_only_without_a_budget():
    unpriced = PricedCandidate("x", "mystery")
    assert isinstance(admit(token(), call(), [unpriced], NOW), errors.ModelNotPriced)
    assert isinstance(admit(token(strict=False), call(), [unpriced], NOW), errors.ModelNotPriced)
    assert admit(token(max_amount_nanos=None), call(), [unpriced], NOW) == Grant(0, None)


def test_an_explicit_price_of_zero_passes():
    free = PricedCandidate("x", "free", 3, Rates.from_json('{"input":"0","output":"0"}'), None, 100)
    assert admit(token(), call(), [free], NOW) == Grant(0, None)


def test_a_unit_without_a_rate_makes_the_model_unpriced():
    assert isinstance(admit(token(), call(units=("output_audio",)), [MODEL], NOW), errors.ModelNotPriced)


def test_what_has_no_bound_is_refused_on_a_strict_budget_alone():
    unbounded = call(unbounded_features=("web_search",))
    assert isinstance(admit(token(), unbounded, [MODEL], NOW), errors.UnboundedRequest)
    assert isinstance(admit(token(strict=False), unbounded, [MODEL], NOW), Grant)
    assert isinstance(admit(token(max_amount_nanos=None), unbounded, [MODEL], NOW), Grant)


def test_input_that_lies_elsewhere_is_held_at_the_context_window():
    rich = token(max_amount_nanos=1000 * DOLLAR)
    decision = admit(rich, call(input_unbounded=True, max_output_tokens=10), [MODEL], NOW)
    assert decision == Grant(100_010 * TOKEN_PRICE, None)
    nameless = PricedCandidate("x", "demo", 1, MODEL.rates, None, 100)
    assert isinstance(admit(rich, call(input_unbounded=True), [nameless], NOW), errors.UnboundedRequest)


def test_a_soft_budget_lets_a_call_pass_while_anything_is_left():
    soft = token(strict=False, period_spent_nanos=DOLLAR - 1)
    assert isinstance(admit(soft, call(max_output_tokens=5000), [MODEL], NOW), Grant)
    assert isinstance(admit(token(strict=False, period_spent_nanos=DOLLAR), call(), [MODEL], NOW), errors.BudgetExhausted)


@given(
    spent=st.integers(0, DOLLAR),
    held_share=st.floats(0, 1),
    read=st.integers(0, 2000),
    stated=st.none() | st.integers(1, 10**12),
    choices=st.integers(1, 8),
    thinking=st.integers(0, 5000),
)
def test_a_grant_never_takes_more_than_what_is_free(spent, held_share, read, stated, choices, thinking):
    held = int((DOLLAR - spent) * held_share)
    state = token(period_spent_nanos=spent, held_nanos=held)
    wanted = call(input_token_ceiling=read, max_output_tokens=stated, choices=choices, thinking_budget_tokens=thinking)
    decision = admit(state, wanted, [MODEL], NOW)
    if isinstance(decision, Grant):
        assert spent + held + decision.held_nanos <= DOLLAR
        limit = decision.max_output_tokens or min(stated or 10_000, 10_000)
        assert decision.held_nanos >= (read + choices * limit) * TOKEN_PRICE
    elif isinstance(decision, errors.BudgetReserved):
        # Waiting is worth while: with nothing in flight the same call passes.
        assert isinstance(admit(token(period_spent_nanos=spent), wanted, [MODEL], NOW), Grant)
