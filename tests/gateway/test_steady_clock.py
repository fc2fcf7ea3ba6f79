"""A wall clock that jumps begins and ends nothing until it has proved stable, and all is well when it is right again."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from gateway.clock import SteadyClock, SystemClock, to_text
from gateway.limits import Period, period_start
from gateway.storage.reconcile import reconcile
from tests.support.ledger import (
    DOLLAR,
    MovedClock,
    add_token,
    admission,
    make_database,
    open_ledger,
    settled,
)


class Hands:
    """A wall clock and a monotonic one that the test moves."""

    def __init__(self) -> None:
        self.wall, self.seconds = datetime(2026, 11, 27, 12, tzinfo=UTC), 1000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds

    def passes(self, seconds: float, *, jump: float = 0.0) -> None:
        self.seconds += seconds
        self.wall += timedelta(seconds=seconds + jump)


def steady() -> tuple[Hands, SteadyClock, list[tuple[float, bool]]]:
    told: list[tuple[float, bool]] = []
    hands = Hands()
    return hands, SteadyClock(hands, tell=lambda seconds, *, followed: told.append((round(seconds), followed))), told


@pytest.mark.parametrize("jump", [40 * 86400.0, -86400.0, 3600.0, -3.0])
def test_a_jump_is_followed_only_when_it_has_held_for_a_minute(jump):
    hands, clock, told = steady()
    hands.passes(5, jump=jump)
    for _ in range(11):
        assert clock.now() == hands.wall - timedelta(seconds=jump)
        hands.passes(5)
    hands.passes(6)
    assert clock.now() == hands.wall - timedelta(seconds=jump) or told[-1][1]
    hands.passes(1)
    assert clock.now() == hands.wall
    assert told == [(jump, False), (jump, True)]


def test_a_jump_and_back_is_nothing_but_a_line_in_the_log():
    hands, clock, told = steady()
    true = hands.wall
    for jump in (40 * 86400.0, -40 * 86400.0):
        hands.passes(4, jump=jump)
        true += timedelta(seconds=4)
        assert clock.now() == true
    assert told == [(40 * 86400, False)]


def test_a_clock_that_jumps_again_and_again_is_never_followed():
    hands, clock, _ = steady()
    true = hands.wall
    for number in range(100):
        hands.passes(10, jump=3600.0 if number % 2 else -1800.0)
        true += timedelta(seconds=10)
        assert clock.now() == true


def test_a_clock_that_is_slewed_is_followed_all_the_time():
    hands, clock, told = steady()
    for _ in range(1000):
        hands.passes(1, jump=0.5)
        assert clock.now() == hands.wall
    assert told == []


def test_the_machines_own_clocks_agree():
    assert abs(SteadyClock(SystemClock()).now() - datetime.now(UTC)) < timedelta(seconds=1)


def period_of(db):
    """The period of the one token, and what is spent."""
    columns = ("period_start", "period_spent_nanos", "total_spent_nanos")
    [row] = db.query(f"SELECT {', '.join(columns)} FROM client_tokens")
    return dict(zip(columns, row, strict=True))


# -- the ledger ---------------------------------------------------------------------------------------------------------------


def test_calls_that_settle_while_the_wall_clock_is_ahead_begin_no_period(database_url):
    wall = MovedClock()
    with closing(make_database(database_url)) as db, closing(open_ledger(db, SteadyClock(wall), wall=wall)) as ledger:
        add_token(db, max_amount="0.25", budget_period="daily")
        first = admission()
        ledger.commit([], [first])
        ledger.commit([settled(first.request_id)], [])
        before = period_of(db)
        assert before["period_spent_nanos"] > 0
        wall.offset += timedelta(days=40)
        ahead = admission()
        ledger.commit([], [ahead])
        ledger.commit([settled(ahead.request_id)], [])
        wall.offset -= timedelta(days=40)
        after = period_of(db)
        assert after["period_start"] == before["period_start"] == period_start(Period.DAILY, wall.now())
        assert after["period_spent_nanos"] == 2 * before["period_spent_nanos"]
        [[latest]] = db.query("SELECT MAX(admitted_at) FROM requests")
        assert latest < to_text(wall.now())
        assert reconcile(db) == []


def test_a_token_expires_by_the_wall_clock_all_the_same(database_url):
    wall = MovedClock()
    with closing(make_database(database_url)) as db, closing(open_ledger(db, SteadyClock(wall), wall=wall)) as ledger:
        add_token(db, expires_at=to_text(wall.now() + timedelta(minutes=30)))
        assert not isinstance(ledger.commit([], [admission()]).admissions[0], Exception)
        wall.offset += timedelta(hours=1)
        assert type(ledger.commit([], [admission()]).admissions[0]).__name__ == "TokenExpired"


@pytest.mark.parametrize("period", ["daily", "weekly", "monthly"])
def test_a_period_that_begins_in_the_future_heals_when_the_clock_is_right(database_url, period):
    """By an auth that was started with a wrong clock: nothing tells it so."""
    clock = MovedClock()
    clock.offset = timedelta(days=40)
    with closing(make_database(database_url)) as db, closing(open_ledger(db, clock)) as ledger:
        add_token(db, max_amount="0.25", budget_period=period)
        for offset in (timedelta(days=40), timedelta(0)):
            clock.offset = offset
            one = admission()
            ledger.commit([], [one])
            ledger.commit([settled(one.request_id)], [])
        row = period_of(db)
        assert row["period_start"] == period_start(Period(period), clock.now())
        assert row["period_spent_nanos"] == row["total_spent_nanos"] > 0  # both calls count, in the period of now
        assert row["period_spent_nanos"] < DOLLAR
        assert reconcile(db) == []
