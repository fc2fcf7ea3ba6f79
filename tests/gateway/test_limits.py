"""Limits besides the budget: what each lets through, when it starts anew, and what a caller is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import limits
from gateway.clock import from_text, to_text
from gateway.limits import Period, Window

NOW = datetime(2026, 11, 25, 13, 37, 42, 500_000, tzinfo=UTC)  # a Wednesday


def entered(**values):
    window = Window(**values)
    limits.enter_minute(window, NOW)
    return window


def refused(window, now):
    """The first of the three limits that one more call meets; None: it passes."""
    return limits.check_parallel(window) or limits.check_requests(window, now) or limits.check_tokens(window, now)


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        (Period.TOTAL, None, None),
        (Period.DAILY, "2026-11-25", "2026-11-26"),
        (Period.WEEKLY, "2026-11-23", "2026-11-30"),
        (Period.MONTHLY, "2026-11-01", "2026-12-01"),
    ],
)
def test_periods_begin_and_end_at_midnight_utc(period, start, end):
    assert limits.period_start(period, NOW) == (f"{start}T00:00:00.000000Z" if start else None)
    ends = limits.period_end(period, NOW)
    assert (to_text(ends)[:10] if ends else None) == end


@given(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)), st.sampled_from(list(Period)[1:]))
def test_every_moment_lies_in_exactly_one_period(moment, period):
    start, end = from_text(limits.period_start(period, moment)), limits.period_end(period, moment)
    assert start <= moment < end
    assert limits.period_start(period, end) == to_text(end)
    assert limits.period_end(period, start) == end


def test_a_period_starts_anew_once_and_goes_back_only_where_it_cannot_have_begun():
    start = limits.period_start(Period.DAILY, NOW)
    assert limits.rolled(Period.DAILY, None, 7, NOW) == (start, 7)
    assert limits.rolled(Period.DAILY, start, 7, NOW) == (start, 7)
    later = limits.period_start(Period.DAILY, NOW + timedelta(days=1))
    assert limits.rolled(Period.DAILY, start, 7, NOW + timedelta(days=1)) == (later, 0)
    midnight = datetime.fromisoformat(later)
    assert limits.rolled(Period.DAILY, later, 7, midnight - timedelta(minutes=59)) == (later, 7)  # another machine is ahead
    assert limits.rolled(Period.DAILY, later, 7, midnight - timedelta(minutes=61)) == (start, 0)  # it was wrong
    assert limits.rolled(Period.TOTAL, start, 7, NOW) == (None, 7)


def test_requests_a_minute_pass_up_to_the_limit_and_again_in_the_next_minute():
    window = entered(requests_per_minute=2)
    for _ in range(2):
        assert refused(window, NOW) is None
        window.window_requests += 1
    refusal = refused(window, NOW)
    assert refusal.reason == "RATE_LIMITED"
    assert refusal.retry_after == pytest.approx(17.5)
    assert refusal.metadata == {"limit": "requests_per_minute", "limit_value": "2", "resets_at": "2026-11-25T13:38:00.000000Z"}
    limits.enter_minute(window, NOW + timedelta(seconds=18))
    assert refused(window, NOW + timedelta(seconds=18)) is None


def test_tokens_a_minute_and_calls_at_once_are_limits_too():
    assert refused(entered(tokens_per_minute=100), NOW) is None
    window = entered(tokens_per_minute=100)
    window.window_tokens = 100
    assert refused(window, NOW).metadata["limit"] == "tokens_per_minute"
    assert refused(entered(max_parallel_requests=5, open_calls=4), NOW) is None
    refusal = refused(entered(max_parallel_requests=5, open_calls=5), NOW)
    assert (refusal.metadata["limit"], refusal.retry_after) == ("max_parallel_requests", 1.0)


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "max_parallel_requests"])
def test_no_limit_is_no_limit_and_nought_lets_nothing_pass(name):
    full = {"open_calls": 10**6, "window_requests": 10**6, "window_tokens": 10**9, "window_start": limits.minute_of(NOW)}
    assert refused(Window(**full), NOW) is None
    refusal = refused(entered(**{name: 0}), NOW)
    assert (refusal.metadata, refusal.retry_after) == ({"limit": name, "limit_value": "0"}, None)  # no waiting opens it


@pytest.mark.parametrize(("offset", "kept"), [(0, True), (-1, False), (1, True), (2, False), (60 * 24, False)])
def test_a_minute_of_a_clock_that_is_a_little_ahead_counts_on_and_one_far_ahead_is_forgotten(offset, kept):
    window = entered(window_start=limits.minute_of(NOW + timedelta(minutes=offset)), window_requests=5)
    assert (window.window_requests == 5) is kept


def test_an_open_call_counts_with_what_it_may_well_use():
    assert limits.expected_tokens(4_000, 100, 2) == 1_200
    assert limits.expected_tokens(0, None, 1) == 256


@pytest.mark.parametrize(
    ("allowed", "address", "passes"),
    [
        (None, "", True),
        ("", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("10.0.0.0/8, 192.0.2.0/24", "192.0.2.200", True),
        ("192.0.2.1/24", "192.0.2.200", True),
        ("192.0.2.0/24", "::ffff:192.0.2.9", True),
        ("::ffff:192.0.2.0/120", "192.0.2.9", True),
        ("::ffff:192.0.2.9", "::ffff:192.0.2.9", True),
        ("::/0", "192.0.2.9", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("2001:db8::/32", "192.0.2.7", False),
        ("192.0.2.7", "", False),
        ("192.0.2.7", "unknown", False),
        ("nonsense", "192.0.2.7", False),
        ("nonsense,192.0.2.7", "192.0.2.7", True),
    ],
)
def test_addresses_open_a_token_to_those_that_are_named(allowed, address, passes):
    assert (limits.check_address(allowed, address) is None) is passes


def test_addresses_are_kept_in_one_form_and_what_is_none_is_named():
    assert (
        limits.parse_addresses(["192.0.2.7/32", " 192.0.2.1/24 ", "2001:DB8::0/32"]) == "192.0.2.7,192.0.2.0/24,2001:db8::/32"
    )
    assert limits.parse_addresses(["::ffff:192.0.2.7", "::FFFF:10.0.0.0/104"]) == "192.0.2.7,10.0.0.0/8"
    assert limits.parse_addresses([]) is None
    with pytest.raises(ValueError, match=r"'example\.org' is no address"):
        limits.parse_addresses(["example.org"])
