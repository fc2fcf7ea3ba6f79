"""Old rows go, what they cost stays in the books at every moment, and what is not old stays."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from gateway.clock import to_text
from gateway.errors import FailedPrecondition, PermissionDenied
from gateway.ids import uuid7
from gateway.storage.database import connect
from gateway.storage.reconcile import reconcile
from gateway.storage.refusals import KeptRefusal
from gateway.storage.retention import AT_ONCE, Position, old_calls, prune_calls
from gateway.usage import Outcome
from services.auth import pruning
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics
from services.auth.sweeper import Sweeper
from tests.support.ledger import (
    TOKEN_PRICE,
    MovedClock,
    add_token,
    admission,
    make_database,
    open_ledger,
    released,
    settled,
    token_row,
)

DAYS = 30


@pytest.fixture
def books(database_url):
    """A database with a token, its ledger, and a clock that is moved on by `age`."""
    clock = MovedClock()
    with closing(make_database(database_url)) as db, closing(open_ledger(db, clock)) as ledger:
        add_token(db, max_amount="1000")
        yield db, ledger, clock


def sweeper_of(db, ledger, clock, days=DAYS, *, beaten=True):
    """beaten: whether a proxy was heard just before, so that the clock is believed."""
    if beaten:
        ledger.beat(uuid7(), "here")
    registry = CollectorRegistry()
    sweeper = Sweeper(
        db=db, ledger=ledger, denials=DenialLog(clock), clock=clock, metrics=AuthMetrics(registry), retention_days=days
    )
    return sweeper, registry


def pruned(registry, table="requests"):
    return registry.get_sample_value("gateway_rows_pruned_total", {"table": table})


def ids(db):
    return {row[0] for row in db.query("SELECT request_id FROM requests")}


def now_id(clock):
    return uuid7(int(clock.now().timestamp() * 1000))


def make_calls(ledger, clock, count):
    """Settled calls, 30 thousandths of a dollar each."""
    calls = [admission(now_id(clock)) for _ in range(count)]
    for start in range(0, count, 100):
        ledger.commit([], calls[start : start + 100])
        ledger.commit([settled(call.request_id) for call in calls[start : start + 100]], [])
    return [call.request_id for call in calls]


def test_final_rows_go_when_they_are_old_and_everything_else_stays(books):
    db, ledger, clock = books
    spent = make_calls(ledger, clock, 3)
    let_go, left, still_open = admission(), admission(proxy_id=uuid7()), admission()
    ledger.commit([], [let_go, left, still_open])
    ledger.commit([released(let_go.request_id)], [])
    ledger.expire(request_ids=[left.request_id])
    untimed = "0193e2c4-7b1a-4c3d-9f00-1a2b3c4d5e6f"
    ledger.commit([], [admission(untimed)])
    ledger.commit([settled(untimed)], [])
    before = token_row(db)
    clock.offset = timedelta(days=DAYS - 1)
    young = make_calls(ledger, clock, 2)
    before = token_row(db)
    sweeper, registry = sweeper_of(db, ledger, clock)
    sweeper.look()
    assert {*spent, *young, let_go.request_id, left.request_id} <= ids(db)
    clock.offset = timedelta(days=DAYS, minutes=1)
    sweeper, registry = sweeper_of(db, ledger, clock)
    sweeper.look()
    assert ids(db) == {*young, still_open.request_id, untimed}
    assert pruned(registry) == 5
    assert token_row(db) == before
    assert reconcile(db) == []
    ((day_cost, pruned_cost),) = db.query(
        "SELECT SUM(cost_nanos), SUM(pruned_cost_nanos) FROM daily_totals WHERE day < ?",
        (to_text(clock.now() - timedelta(days=2))[:10],),
    )
    assert pruned_cost == 3 * 30 * TOKEN_PRICE + 100 * TOKEN_PRICE
    assert day_cost == pruned_cost + 30 * TOKEN_PRICE  # of the call whose id has no time in it


def test_a_call_that_ended_late_is_kept_from_its_end_on(books):
    db, ledger, clock = books
    call = admission()
    ledger.commit([], [call])
    clock.offset = timedelta(days=20)
    ledger.commit([settled(call.request_id)], [])
    clock.offset = timedelta(days=45)
    sweeper_of(db, ledger, clock)[0].look()
    assert ids(db) == {call.request_id}
    clock.offset = timedelta(days=51)
    sweeper_of(db, ledger, clock)[0].look()
    assert ids(db) == set()


def test_nothing_younger_than_eight_days_goes_whatever_is_asked_for(books):
    db, ledger, clock = books
    made = make_calls(ledger, clock, 2)
    clock.offset = timedelta(days=7, hours=12)
    assert ledger.prune(made, clock.now()) == 0
    assert old_calls(db, clock.now(), clock.now(), Position()) == ([], None)
    clock.offset = timedelta(days=8, hours=1)
    assert ledger.prune(made, clock.now()) == 2
    assert reconcile(db) == []


def test_zero_keeps_rows_for_good(books):
    db, ledger, clock = books
    made = make_calls(ledger, clock, 2)
    clock.offset = timedelta(days=5000)
    sweeper_of(db, ledger, clock, days=0)[0].look()
    assert ids(db) == set(made)


@pytest.mark.parametrize("changes", [{}, {"written": 21}, {"outcome": Outcome.RELEASED, "usage": {}}])
def test_a_report_on_a_deleted_call_is_refused_and_charges_nothing(books, changes):
    db, ledger, clock = books
    (made,) = make_calls(ledger, clock, 1)
    before = token_row(db)
    clock.offset = timedelta(days=DAYS + 1)
    sweeper_of(db, ledger, clock)[0].look()
    late = settled(made, token_id=1, may_record_unadmitted=True, **changes)
    (answer,) = ledger.commit([late], []).settlements
    assert isinstance(answer, FailedPrecondition)
    assert "7 days old" in answer.message
    (refused,) = ledger.commit([], [admission(made)]).admissions
    assert isinstance(refused, FailedPrecondition)
    assert token_row(db) == before
    assert reconcile(db) == []


def test_a_repeated_report_on_a_kept_call_still_gets_its_first_answer(books):
    db, ledger, clock = books
    untimed = "0193e2c4-7b1a-4c3d-9f00-1a2b3c4d5e6f"
    told = settled(untimed, token_id=1, may_record_unadmitted=True)
    (first,) = ledger.commit([told], []).settlements
    assert not isinstance(first, PermissionDenied)
    clock.offset = timedelta(days=DAYS + 100)
    sweeper_of(db, ledger, clock)[0].look()
    (again,) = ledger.commit([told], []).settlements
    assert (again.state, again.cost_nanos) == (first.state, first.cost_nanos)
    assert token_row(db)["total_spent_nanos"] == 30 * TOKEN_PRICE


def test_old_refusals_and_their_counts_go(books):
    db, ledger, clock = books
    for age in (DAYS + 1, DAYS - 1):
        minute = to_text(clock.now() - timedelta(days=age))[:16]
        at = to_text(clock.now() - timedelta(days=age))
        kept = [KeptRefusal(uuid7(), at, 1, "RATE_LIMITED", "no") for _ in range(AT_ONCE + 20)]
        ledger.add_denials({(1, f"R{number}", minute): (1, "", "") for number in range(AT_ONCE + 20)}, kept)
    sweeper, registry = sweeper_of(db, ledger, clock)
    sweeper.look()
    assert db.query("SELECT COUNT(*), MIN(minute) FROM denials") == [(AT_ONCE + 20, minute)]
    assert db.query("SELECT COUNT(*), MIN(at) FROM refusals") == [(AT_ONCE + 20, at)]
    assert pruned(registry, "denials") == pruned(registry, "refusals") == AT_ONCE + 20


def add_refusals(ledger, at, count):
    """Single refusals of this moment, and as many counts."""
    kept = [KeptRefusal(uuid7(), to_text(at), 1, "RATE_LIMITED", "no") for _ in range(count)]
    ledger.add_denials({(1, f"R{number}", to_text(at)[:16]): (1, "", "") for number in range(count)}, kept)


def rows_of(db):
    """How many counts of refusals there are, and how many single ones."""
    return tuple(db.query(f"SELECT COUNT(*) FROM {table}")[0][0] for table in ("denials", "refusals"))


def test_more_refusals_than_one_look_deletes_go_with_the_next_ones_and_no_hour_later(books, monkeypatch):
    """Else they would come in faster than they go."""
    db, ledger, clock = books
    monkeypatch.setattr(pruning, "BATCHES", 2)
    add_refusals(ledger, clock.now() - timedelta(days=DAYS + 1), 5 * AT_ONCE)
    sweeper, _ = sweeper_of(db, ledger, clock)
    left = []
    for _ in range(3):
        sweeper.look()
        left.append(rows_of(db))
    assert left == [(3 * AT_ONCE,) * 2, (AT_ONCE,) * 2, (0, 0)]


def test_once_none_is_left_the_next_ones_wait_for_an_hour(books, monkeypatch):
    db, ledger, clock = books
    monkeypatch.setattr(pruning, "_EVERY", 5)  # looks
    sweeper, _ = sweeper_of(db, ledger, clock)
    sweeper.look()
    add_refusals(ledger, clock.now() - timedelta(days=DAYS + 1), 1)
    for _ in range(4):
        sweeper.look()
    assert rows_of(db) == (1, 1)
    sweeper.look()
    assert rows_of(db) == (0, 0)


@pytest.mark.parametrize(("days", "counts"), [(0, 2), (400, 2), (10, 0)])
def test_single_refusals_go_after_thirty_days_at_the_latest(books, days, counts):
    db, ledger, clock = books
    add_refusals(ledger, clock.now() - timedelta(days=31), 1)
    add_refusals(ledger, clock.now() - timedelta(days=29), 1)
    sweeper_of(db, ledger, clock, days=days)[0].look()
    assert rows_of(db) == (counts, int(days != 10))


def test_the_books_add_up_while_two_delete_and_calls_go_on(books, database_url):
    """A reader proves the books all the time; two sweepers share the old rows; the ledger goes on charging."""
    db, ledger, clock = books
    made = make_calls(ledger, clock, 2 * AT_ONCE + 50)
    clock.offset = timedelta(days=DAYS + 1)
    failures: list[object] = []
    looks: list[int] = []
    finished = threading.Event()

    def guarded(work):
        def run():
            try:
                work()
            except Exception as error:
                failures.append(error)

        return threading.Thread(target=run)

    def prove():
        with closing(connect(database_url, busy_timeout=5.0)) as own:
            while not finished.is_set():
                failures.extend(reconcile(own))
                looks.append(1)

    counts: list[float] = []

    def sweep():
        with closing(connect(database_url, busy_timeout=5.0)) as own, closing(open_ledger(own, clock)) as second:
            sweeper, registry = sweeper_of(own, second, clock)
            sweeper.look()
            counts.append(pruned(registry))

    reader, sweepers = guarded(prove), [guarded(sweep), guarded(sweep)]
    for thread in (reader, *sweepers):
        thread.start()
    young = make_calls(ledger, clock, 40)
    for thread in sweepers:
        thread.join()
    finished.set()
    reader.join()
    assert failures == []
    assert looks
    assert sum(counts) == len(made)
    assert ids(db) == set(young)
    assert reconcile(db) == []


def test_a_transaction_that_breaks_off_has_deleted_nothing(books):
    db, ledger, clock = books
    made = make_calls(ledger, clock, 5)
    clock.offset = timedelta(days=DAYS + 1)
    original = db.run_many

    def broken(sql, rows):
        if "daily_totals" in sql:
            raise KeyboardInterrupt
        original(sql, rows)

    db.run_many = broken
    try:
        with pytest.raises(KeyboardInterrupt):
            prune_calls(db, made, clock.now() - timedelta(days=DAYS), clock.now())
    finally:
        del db.run_many
    assert ids(db) == set(made)
    assert reconcile(db) == []
    assert ledger.prune(made, clock.now() - timedelta(days=DAYS)) == 5
    assert reconcile(db) == []


def test_an_auth_that_starts_with_a_clock_far_ahead_deletes_nothing_for_a_day(books):
    db, ledger, clock = books
    kept = make_calls(ledger, clock, 3)
    clock.offset += timedelta(days=2 * DAYS)
    sweeper, _ = sweeper_of(db, ledger, clock, beaten=False)
    ledger.beat(uuid7(), "here")  # by the same clock
    for _ in range(24 * 720 - 1):
        sweeper._pruner.look()
    assert ids(db) == set(kept)
    sweeper._pruner.look()
    assert ids(db) == set()


def test_an_auth_that_starts_after_some_quiet_days_deletes_at_once(books):
    db, ledger, clock = books
    make_calls(ledger, clock, 3)
    clock.offset += timedelta(days=DAYS - 1)
    recent = make_calls(ledger, clock, 1)
    clock.offset += timedelta(days=6)
    sweeper, _ = sweeper_of(db, ledger, clock, beaten=False)
    sweeper.look()
    assert ids(db) == set(recent)
