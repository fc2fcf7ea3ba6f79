"""Budget periods that begin in an unusual way: written by hand, or with a clock that was set back. Each was wrong once."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from gateway.admission import Admitted
from gateway.client_tokens import NewToken
from gateway.ids import uuid7
from gateway.storage import token_usage
from gateway.storage.adjustments import AdjustmentStore
from gateway.storage.audit import Actor
from gateway.storage.reconcile import reconcile
from gateway.storage.tokens import TokenStore
from gateway.tokens import hash_secret
from tests.support.ledger import (
    DOLLAR,
    KEY,
    SECRET,
    TOKEN_PRICE,
    MovedClock,
    admission,
    make_database,
    open_ledger,
    released,
    settled,
    token_row,
)

WE = Actor("operator")
DAY = timedelta(days=1)
PERIODS = ("total", "daily", "weekly", "monthly")
WEDNESDAY = datetime(2026, 11, 25, 0, 30, tzinfo=UTC)


class SetClock(MovedClock):
    """A clock that stands where the test has put it."""

    def __init__(self, at: datetime) -> None:
        super().__init__()
        self.at = at

    def now(self) -> datetime:
        return self.at


class Books:
    """One strict token of ten dollars, its ledger and its administrator."""

    def __init__(self, db, ledger, clock):
        self.db, self.ledger, self.clock = db, ledger, clock
        self.store = TokenStore(db, token_key=KEY, clock=clock)
        self.adjustments = AdjustmentStore(db, token_key=KEY, clock=clock)

    def make(self, **fields):
        self.store.create(NewToken(secret=SECRET, max_amount_nanos=10 * DOLLAR, **fields), actor=WE)

    def admit(self):
        asked = admission(uuid7(int(self.clock.at.timestamp() * 1000)), read=999, limit=1)
        return asked.request_id, self.ledger.commit([], [asked]).admissions[0]

    def spend(self, dollars):
        for _ in range(dollars):
            request_id, answer = self.admit()
            assert isinstance(answer, Admitted), answer
            self.ledger.commit([settled(request_id, read=999, written=1)], [])

    def spent_as_each_door_says(self):
        """In dollars: the holder's view, the administrator's, and the row after the token's next call."""
        holder = token_usage.find(self.db, hash_secret(KEY, SECRET).hex(), self.clock.at)
        admin = self.store.get(1).period_spent_nanos
        self.spend(1)
        row = token_row(self.db)["period_spent_nanos"] - DOLLAR
        return [nanos // DOLLAR for nanos in (holder.state.period_spent_nanos, admin, row)]


@pytest.fixture
def books(database_url):
    clock = SetClock(WEDNESDAY)
    with closing(make_database(database_url)) as db, closing(open_ledger(db, clock)) as ledger:
        yield Books(db, ledger, clock)
        assert reconcile(db) == []


@pytest.mark.parametrize(("before", "after"), list(permutations(PERIODS, 2)))
def test_a_period_that_is_written_over_by_hand_counts_what_was_spent_since_it_began(books, before, after):
    books.clock.at = WEDNESDAY - 10 * DAY
    books.make(budget_period=before)
    books.spend(1)
    books.clock.at = WEDNESDAY - DAY
    books.spend(1)
    books.clock.at = WEDNESDAY
    books.spend(1)
    with books.db.write():
        books.db.run("UPDATE client_tokens SET budget_period = ?", (after,))
    assert books.spent_as_each_door_says() == [{"total": 3, "daily": 1, "weekly": 2, "monthly": 3}[after]] * 3


def test_an_amount_that_is_written_by_hand_with_another_period_is_all_that_was_spent(books):
    books.make(budget_period="daily")
    books.spend(1)
    books.clock.at += DAY
    books.spend(2)
    with books.db.write():
        books.db.run("UPDATE client_tokens SET budget_period = 'total', amount_spent = 5")
    assert books.store.get(1).period_spent_nanos == 5 * DOLLAR
    assert books.spent_as_each_door_says() == [5, 5, 5]


def test_a_correction_after_a_period_was_written_by_hand_is_booked_in_it(books):
    books.make(budget_period="monthly")
    books.spend(2)
    with books.db.write():
        books.db.run("UPDATE client_tokens SET budget_period = 'daily'")
    books.adjustments.create(1, TOKEN_PRICE * 1000, "a call that was lost", actor=WE)
    assert token_row(books.db)["period_spent_nanos"] == 3 * DOLLAR


# -- a clock that was set back ------------------------------------------------------------------------------------------------


def test_calls_by_a_clock_that_was_set_back_over_midnight_count_in_the_budget(books):
    books.make(budget_period="daily")
    books.spend(4)
    books.clock.at -= timedelta(hours=1)
    books.spend(6)
    assert not isinstance(books.admit()[1], Admitted)
    row = token_row(books.db)
    assert (row["period_spent_nanos"], row["total_spent_nanos"]) == (10 * DOLLAR, 10 * DOLLAR)


def test_usage_that_was_not_admitted_counts_in_the_budget_by_a_clock_that_was_set_back(books):
    books.make(budget_period="daily")
    books.spend(4)
    books.clock.at -= timedelta(hours=1)
    report = settled(uuid7(int(books.clock.at.timestamp() * 1000)), read=1_000, written=0, token_id=1)
    (answer,) = books.ledger.commit([replace(report, may_record_unadmitted=True)], []).settlements
    assert answer.remaining_nanos == 5 * DOLLAR


def test_a_correction_by_a_clock_that_was_set_back_is_one_of_the_period_that_the_token_is_in(books):
    books.make(budget_period="daily")
    books.spend(4)
    books.clock.at -= timedelta(hours=1)
    booked = books.adjustments.create(1, -DOLLAR, "an answer that was cut off", actor=WE)
    assert booked.adjustment.created_at == WEDNESDAY.replace(minute=0)
    assert token_row(books.db)["period_spent_nanos"] == 3 * DOLLAR


def test_an_amount_that_is_written_by_hand_counts_in_the_period_by_a_clock_that_was_set_back(books):
    books.make(budget_period="daily")
    books.spend(4)
    books.clock.at -= timedelta(hours=1)
    with books.db.write():
        books.db.run("UPDATE client_tokens SET amount_spent = 5")
    assert books.store.get(1).period_spent_nanos == 5 * DOLLAR


def test_a_call_by_a_clock_that_is_a_little_behind_is_counted_with_what_it_used_in_the_minute_of_its_token(books):
    books.make(tokens_per_minute=10_000)
    books.spend(1)
    books.clock.at -= timedelta(seconds=1)
    request_id, answer = books.admit()
    assert answer.rate_limits[0].remaining == 10_000 - 1_000 - 251
    books.ledger.commit([settled(request_id, read=20, written=1)], [])
    assert books.admit()[1].rate_limits[0].remaining == 10_000 - 1_000 - 21 - 251


def test_no_more_than_the_limit_is_left_after_a_clock_went_far_ahead_and_back(books):
    books.make(tokens_per_minute=10_000)
    before, _ = books.admit()
    books.clock.at += timedelta(hours=1)
    books.spend(1)
    books.clock.at -= timedelta(hours=1)
    books.ledger.commit([released(books.admit()[0])], [])  # it has the minute begin anew, in which the first one was
    books.ledger.commit([settled(before, read=1, written=0)], [])
    assert books.admit()[1].rate_limits[0].remaining == 10_000 - 251
