"""Calls at another price: what is computed, what is booked, and that nothing is booked twice."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial

import pytest

from gateway.errors import FailedPrecondition, NotFound
from gateway.pricing import Rate, Rates
from gateway.storage.audit import Actor
from gateway.storage.database import connect
from gateway.storage.prices import load_rows
from gateway.storage.reconcile import reconcile
from gateway.storage.repricing import AT_ONCE, Repricing, Selection
from gateway.usage import Source
from tests.support.ledger import (
    MODEL,
    TOKEN_PRICE,
    MovedClock,
    add_token,
    admission,
    make_database,
    open_ledger,
    price,
    settled,
    token_row,
)

OPERATOR = Actor("operator")
CALL = 30 * TOKEN_PRICE
HALF = Rates({"input": Rate(Decimal(500)), "output": Rate(Decimal(500))})


@pytest.fixture
def books(database_url):
    clock = MovedClock()
    with closing(make_database(database_url)) as db, closing(open_ledger(db, clock)) as ledger:
        add_token(db, max_amount="1000")
        yield db, ledger, clock


def make_calls(ledger, count, **changes):
    for start in range(0, count, 100):
        calls = [admission() for _ in range(min(100, count - start))]
        ledger.commit([], calls)
        ledger.commit([settled(call.request_id, **changes) for call in calls], [])


def new_price(db, rate="500"):
    load_rows(db, "admin", [price(MODEL, input=rate, output=rate)], "2026-01-01T00:00:00.000000Z")


def since(clock, **span):
    return Selection(since=clock.now() - timedelta(**(span or {"hours": 1})))


def booked(db):
    return db.query("SELECT amount_nanos, reason, actor FROM adjustments ORDER BY id")


def test_a_preview_tells_the_difference_and_changes_nothing(books):
    db, ledger, clock = books
    make_calls(ledger, 4)
    new_price(db)
    before = token_row(db)
    (found,) = Repricing(db, clock).preview(since(clock))
    assert (found.token_id, found.calls, found.left_out) == (1, 4, 0)
    assert (found.charged_nanos, found.would_cost_nanos, found.difference_nanos) == (4 * CALL, 2 * CALL, -2 * CALL)
    assert token_row(db) == before
    assert booked(db) == []


def test_what_is_booked_is_a_correction_and_a_second_run_books_nothing(books):
    db, ledger, clock = books
    make_calls(ledger, 4)
    new_price(db)
    work = Repricing(db, clock)
    (first,) = work.book(since(clock), "the price was wrong", actor=OPERATOR)
    assert first.difference_nanos == -2 * CALL
    assert len(first.adjustment_ids) == 1
    assert token_row(db)["total_spent_nanos"] == token_row(db)["period_spent_nanos"] == 2 * CALL
    assert reconcile(db) == []
    (second,) = work.book(since(clock), "the price was wrong", actor=OPERATOR)
    assert (second.difference_nanos, second.adjustment_ids) == (0, ())
    assert booked(db) == [(-2 * CALL, "the price was wrong", "operator")]
    assert db.query("SELECT action FROM audit WHERE action = 'token.reprice'") == [("token.reprice",)]


def test_a_further_price_starts_from_what_was_booked(books):
    db, ledger, clock = books
    make_calls(ledger, 2)
    work = Repricing(db, clock)
    for rate, left in (("500", CALL), ("2000", 4 * CALL), ("1000", 2 * CALL)):
        new_price(db, rate)
        list(work.book(since(clock), "again", actor=OPERATOR))
        assert token_row(db)["total_spent_nanos"] == left
        assert reconcile(db) == []


def test_only_calls_with_the_providers_usage_that_can_be_computed_again(books):
    db, ledger, clock = books
    make_calls(ledger, 1)
    make_calls(ledger, 1, source=Source.ESTIMATED)
    make_calls(ledger, 1, usage={"input": 10, "input_audio": 4, "output": 20})  # audio has no price here, and no column
    new_price(db)
    (found,) = Repricing(db, clock).preview(since(clock))
    assert (found.calls, found.left_out) == (1, 1)


def test_a_call_that_several_models_of_an_alias_may_have_served_is_computed_where_they_cost_the_same(books):
    db, ledger, clock = books
    both = replace(price("twin-*", input="1000", output="1000"), pattern='{"glob":"twin-*"}')
    load_rows(db, "file", [both], "2026-01-01T00:00:00.000000Z")
    call = admission(candidates=(("demo", "twin-1"), ("demo", "twin-2")))
    ledger.commit([], [call])
    ledger.commit([settled(call.request_id, model="twin-2")], [])
    work = Repricing(db, clock)
    for name, counts in (("twin-1", (0, 1)), ("twin-*", (1, 0))):
        load_rows(db, "admin", [replace(both, model=name, pattern=f'{{"glob":"{name}"}}', rates=HALF)], "2026-01-02")
        (found,) = work.preview(since(clock))
        assert (found.calls, found.left_out) == counts


def test_the_selection_holds(books):
    db, ledger, clock = books
    add_token(db, "another-token-for-tests", name="other", max_amount="1000")
    make_calls(ledger, 2)
    clock.offset = timedelta(days=2)
    other = admission(secret="another-token-for-tests")
    ledger.commit([], [other])
    ledger.commit([settled(other.request_id)], [])
    new_price(db)
    work = Repricing(db, clock)
    start = clock.now() - timedelta(days=3)

    def calls(**more):
        return [(found.token_id, found.calls) for found in work.preview(Selection(since=start, **more))]

    assert calls() == [(1, 2), (2, 1)]
    assert calls(token_id=2) == [(2, 1)]
    assert calls(until=clock.now() - timedelta(days=1)) == [(1, 2)]
    assert [found.token_id for found in work.preview(Selection(since=clock.now() - timedelta(days=1)))] == [2]
    assert calls(model=MODEL, provider="demo") == [(1, 2), (2, 1)]
    assert calls(model="other") == calls(provider="other") == []


def test_a_price_and_a_token_can_be_named_and_have_to_be_there(books):
    db, ledger, clock = books
    make_calls(ledger, 1)
    new_price(db)
    ((retired,),) = db.query("SELECT id FROM prices WHERE source = 'admin'")
    load_rows(db, "admin", [], "2026-01-02T00:00:00.000000Z")
    start = clock.now() - timedelta(hours=1)
    (found,) = Repricing(db, clock).preview(Selection(since=start, price_id=retired))
    assert found.would_cost_nanos == CALL // 2
    with pytest.raises(NotFound):
        list(Repricing(db, clock).preview(Selection(since=start, price_id=retired + 1)))
    for run in (Repricing(db, clock).preview, partial(Repricing(db, clock).book, reason="why", actor=OPERATOR)):
        with pytest.raises(NotFound):
            list(run(Selection(since=start, token_id=2)))


def test_an_amount_spent_never_falls_below_nothing(books):
    db, ledger, clock = books
    make_calls(ledger, 2)
    with db.write():  # a credit that was given meanwhile
        db.run("UPDATE client_tokens SET total_spent_nanos = 1, period_spent_nanos = 1")
        db.run("INSERT INTO adjustments (token_id, amount_nanos, reason) VALUES (1, ?, 'credit')", (1 - 2 * CALL,))
    new_price(db)
    with pytest.raises(FailedPrecondition, match="more than can be given back"):
        list(Repricing(db, clock).book(since(clock), "too late", actor=OPERATOR))
    assert len(booked(db)) == 1
    assert reconcile(db) == []


def test_two_at_once_and_one_that_broke_off_book_each_call_once(books, database_url):
    db, ledger, clock = books
    make_calls(ledger, AT_ONCE + 30)
    new_price(db)
    work = Repricing(db, clock)
    work._book_some(since(clock), next(iter(work.preview(since(clock)))), "", "first half", OPERATOR)  # and then it was killed
    assert reconcile(db) == []
    failures: list[Exception] = []

    def run():
        with closing(connect(database_url, busy_timeout=10.0)) as own:
            try:
                list(Repricing(own, clock).book(since(clock), "the rest", actor=OPERATOR))
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(row[0] for row in booked(db)) == -(AT_ONCE + 30) * CALL // 2
    assert len(booked(db)) == 2
    assert reconcile(db) == []


def test_what_was_noted_of_a_call_goes_with_its_row_and_the_correction_stays(books):
    db, ledger, clock = books
    make_calls(ledger, 2)
    new_price(db)
    list(Repricing(db, clock).book(since(clock), "the price was wrong", actor=OPERATOR))
    made = [row[0] for row in db.query("SELECT request_id FROM requests")]
    clock.offset = timedelta(days=40)
    assert ledger.prune(made, clock.now() - timedelta(days=30)) == 2
    assert db.query("SELECT COUNT(*) FROM repriced_calls") == [(0,)]
    assert token_row(db)["total_spent_nanos"] == CALL
    assert reconcile(db) == []
    assert list(Repricing(db, clock).preview(since(clock, days=50))) == []
