"""Prices: exact, rounded once, and never below what a call can cost."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pricing import Rate, Rates, bound, cost_nanos

RATES = Rates.from_json('{"input":"0.15","output":"0.60","cached_input":"0.075"}')
rate = st.decimals(min_value=0, max_value=1000, places=6)


def test_seven_tokens_at_fifteen_cents_a_million_cost_1050_nanos():
    assert cost_nanos({"input": 7}, RATES) == 1050


def test_a_hundred_calls_of_a_cent_are_exactly_a_dollar():
    cent = Rates.from_json('{"input":"0","output":"0","per_request":"0.01"}')
    assert sum(cost_nanos({"input": 5, "output": 5}, cent) for _ in range(100)) == 1_000_000_000


def test_cached_input_is_inside_input_and_charged_at_its_own_rate():
    assert cost_nanos({"input": 1000, "cached_input": 400}, RATES) == 600 * 150 + 400 * 75


def test_what_has_no_rate_of_its_own_costs_what_it_is_a_part_of():
    rates = Rates.from_json('{"input":"1","output":"2"}')
    assert cost_nanos({"input": 10, "cached_input": 10}, rates) == cost_nanos({"input": 10}, rates)
    assert cost_nanos({"output": 10, "reasoning": 7}, rates) == cost_nanos({"output": 10}, rates)


def test_a_tier_prices_the_whole_call_once_its_input_is_longer():
    rates = Rates.from_json('{"input":["1",[1000,"2"]],"output":"0"}')
    assert cost_nanos({"input": 1000}, rates) == 1000 * 1000
    assert cost_nanos({"input": 1001}, rates) == 1001 * 2000


def test_a_half_of_a_nano_dollar_goes_to_the_even_side():
    rates = Rates.from_json('{"input":"0.0005","output":"0"}')
    assert [cost_nanos({"input": n}, rates) for n in (1, 3)] == [0, 2]


def test_a_cost_that_no_float_can_hold_is_exact():
    """1,000,000.5 nano-dollars and a trifle more: a float loses the trifle, and then rounds the half to the even side."""
    rates = Rates.from_json('{"input":"1000.0005000000000001","output":"0"}')
    assert cost_nanos({"input": 1}, rates) == 1_000_001


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        cost_nanos({"input": -1}, RATES)


@pytest.mark.parametrize("text", ['{"input":1}', '{"input":"-1"}', '{"input":"NaN"}', '{"input":"x"}', "[]", '{"input":[]}'])
def test_rates_that_are_no_exact_decimals_are_refused(text):
    with pytest.raises(ValueError, match="rate"):
        Rates.from_json(text)


@given(rate, rate, st.integers(0, 10**7), st.integers(0, 10**7))
def test_cost_is_the_exact_product_rounded_once(input_rate, output_rate, read, written):
    rates = Rates({"input": Rate(input_rate), "output": Rate(output_rate)})
    exact = (input_rate * read + output_rate * written) * 1000
    assert cost_nanos({"input": read, "output": written}, rates) == int(exact.to_integral_value(ROUND_HALF_EVEN))


def test_the_bound_of_a_part_of_a_nano_dollar_is_a_whole_one():
    rates = Rates.from_json('{"input":"0.0006","output":"0.0001"}')
    assert cost_nanos({"input": 1}, rates) == 1
    assert [bound(rates, input_tokens=read).nanos(limit) for read, limit in ((0, 0), (0, 1), (1, 0), (1, 5))] == [0, 1, 1, 2]


@given(rate, rate, rate, rate, st.integers(0, 10**6), st.data())
def test_no_call_within_its_bound_costs_more_than_the_bound(input_rate, cached, written_rate, output_rate, ceiling, data):
    start = data.draw(st.integers(0, 10**6))
    rates = Rates(
        {
            "input": Rate(input_rate, ((start, input_rate * 2),)),
            "cached_input": Rate(cached),
            "cache_write": Rate(written_rate),
            "output": Rate(output_rate),
            "per_request": Rate(Decimal("0.001")),
        }
    )
    limit = data.draw(st.integers(0, 10**5))
    read = data.draw(st.integers(0, ceiling))
    hit = data.draw(st.integers(0, read))
    stored = data.draw(st.integers(0, read - hit))
    written = data.draw(st.integers(0, limit))
    usage = {"input": read, "cached_input": hit, "cache_write": stored, "output": written}
    assert cost_nanos(usage, rates) <= bound(rates, input_tokens=ceiling).nanos(limit)


@given(rate, rate, st.integers(0, 10**6), st.integers(0, 10**12))
def test_what_is_affordable_fits_and_one_token_more_does_not(input_rate, output_rate, ceiling, money):
    limit = bound(Rates({"input": Rate(input_rate), "output": Rate(output_rate)}), input_tokens=ceiling)
    tokens = limit.affordable(money)
    if tokens is None:
        assert limit.nanos(10**9) <= money
    elif tokens >= 0:
        assert limit.nanos(tokens) <= money < limit.nanos(tokens + 1)
    else:
        assert limit.nanos(0) > money
