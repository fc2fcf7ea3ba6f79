"""The ledger: every way through its door, on both databases."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from gateway import errors
from gateway.admission import Admitted, Settled
from gateway.ids import uuid7
from gateway.storage.database import connect
from gateway.storage.reconcile import reconcile
from gateway.usage import Outcome, Source, State
from tests.support.ledger import (
    DOLLAR,
    MODEL,
    PROXY,
    SECRET,
    TOKEN_PRICE,
    MovedClock,
    add_token,
    admission,
    make_database,
    open_ledger,
    released,
    request_row,
    settled,
    token_row,
)

PATIENCE = 20.0  # seconds: five hundred threads on a machine that does other things, too


@pytest.fixture
def db(database_url):
    db = make_database(database_url)
    add_token(db)
    yield db
    assert reconcile(db) == []
    db.close()


@pytest.fixture
def clock():
    return MovedClock()


@pytest.fixture
def ledger(db, clock):
    ledger = open_ledger(db, clock)
    yield ledger
    ledger.close()


def admit(ledger, **changes):
    asked = admission(**changes)
    (answer,) = ledger.commit([], [asked], timeout=PATIENCE).admissions
    return asked.request_id, answer


def settle(ledger, report):
    (answer,) = ledger.commit([report], [], timeout=PATIENCE).settlements
    return answer


def test_a_grant_holds_its_bound_until_the_report_charges_what_was_used(ledger, db):
    request_id, answer = admit(ledger)
    assert isinstance(answer, Admitted)
    assert (answer.held_nanos, token_row(db)["held_nanos"]) == (100 * TOKEN_PRICE, 100 * TOKEN_PRICE)
    assert settle(ledger, settled(request_id)) == Settled(State.SETTLED, 30 * TOKEN_PRICE, DOLLAR - 30 * TOKEN_PRICE)
    assert token_row(db) | {"held_nanos": 0, "total_spent_nanos": 30 * TOKEN_PRICE, "open_calls": 0} == token_row(db)


def test_released_costs_nothing_and_keeps_the_row_with_its_status(ledger, db):
    request_id, _ = admit(ledger)
    settle(ledger, released(request_id, status=500))
    row = request_row(db, request_id)
    assert (row["state"], row["cost_nanos"], row["status"]) == ("released", 0, 500)
    assert token_row(db)["held_nanos"] == token_row(db)["total_spent_nanos"] == 0


def test_the_same_validation_again_gives_the_same_grant_and_holds_once(ledger, db):
    request_id, first = admit(ledger)
    _, second = admit(ledger, request_id=request_id)
    assert second == first
    assert token_row(db)["held_nanos"] == 100 * TOKEN_PRICE


def test_an_id_used_with_other_arguments_or_by_another_identity_is_refused(ledger, db):
    request_id, _ = admit(ledger)
    for changes in ({"limit": 50}, {"identity": "billing"}):
        _, answer = admit(ledger, request_id=request_id, **changes)
        assert isinstance(answer, errors.AlreadyExists)
    settle(ledger, settled(request_id))
    assert isinstance(admit(ledger, request_id=request_id)[1], errors.AlreadyExists)
    assert token_row(db)["request_count"] == 1


def test_the_same_report_again_changes_nothing_and_another_one_is_refused_and_audited(ledger, db):
    request_id, _ = admit(ledger)
    report = settled(request_id)
    answers = ledger.commit([report] * 50, []).settlements
    assert answers == [answers[0]] * 50
    other = settle(ledger, settled(request_id, written=21))
    assert isinstance(other, errors.AlreadyExists)
    assert token_row(db)["total_spent_nanos"] == 30 * TOKEN_PRICE
    assert db.query("SELECT subject FROM audit WHERE action = 'usage.conflict'") == [(f"request:{request_id}",)]


def test_fifty_threads_with_one_report_book_it_once(ledger, db):
    request_id, _ = admit(ledger)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(settle(ledger, settled(request_id)))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [answers[0]] * 50
    assert token_row(db)["request_count"] == 1


def test_a_report_by_another_identity_is_refused(ledger, db):
    request_id, _ = admit(ledger)
    assert isinstance(settle(ledger, settled(request_id, identity="billing")), errors.PermissionDenied)
    assert token_row(db)["held_nanos"] == 100 * TOKEN_PRICE


def test_a_call_withdrawn_before_it_was_admitted_is_never_admitted(ledger, db):
    request_id = uuid7()
    assert settle(ledger, released(request_id)) == Settled(State.RELEASED, 0, None)
    assert settle(ledger, released(request_id)) == Settled(State.RELEASED, 0, None)
    _, answer = admit(ledger, request_id=request_id)
    assert isinstance(answer, errors.RequestWithdrawn)
    assert token_row(db)["held_nanos"] == 0
    assert db.query("SELECT * FROM requests") == []


def test_usage_of_a_call_that_was_never_admitted_needs_the_right(ledger, db):
    report = settled(uuid7(), token_id=1)
    assert isinstance(settle(ledger, settled(uuid7())), errors.NotFound)
    assert isinstance(settle(ledger, report), errors.PermissionDenied)
    assert isinstance(settle(ledger, settled(uuid7(), token_id=99, may_record_unadmitted=True)), errors.NotFound)
    answer = settle(ledger, settled(report.request_id, token_id=1, may_record_unadmitted=True))
    assert answer == Settled(State.SETTLED, 30 * TOKEN_PRICE, DOLLAR - 30 * TOKEN_PRICE)


def test_settlements_of_a_batch_give_their_money_back_before_admissions_are_decided(ledger):
    first, _ = admit(ledger, limit=990)
    assert isinstance(admit(ledger, limit=900)[1], errors.BudgetReserved)
    outcome = ledger.commit([released(first)], [admission(limit=900)])
    assert isinstance(outcome.admissions[0], Admitted)


def test_one_bad_item_leaves_its_neighbours_alone(ledger):
    request_id, _ = admit(ledger)
    outcome = ledger.commit([settled(uuid7()), settled(request_id)], [admission(secret="who-is-this"), admission()])
    assert [type(answer) for answer in outcome.settlements] == [errors.NotFound, Settled]
    assert [type(answer) for answer in outcome.admissions] == [errors.TokenUnknown, Admitted]


@pytest.mark.parametrize("usage", [{"input": -1}, {"input": 10**18}, {"output": 5, "reasoning": 9}, {"mystery": 1}])
def test_implausible_usage_is_charged_at_the_hold(ledger, db, usage):
    request_id, _ = admit(ledger)
    settle(ledger, settled(request_id, usage=usage))
    row = request_row(db, request_id)
    assert (row["cost_nanos"], row["usage_source"]) == (100 * TOKEN_PRICE, "estimated")
    assert ledger.take_events()["implausible_usage"] == 1


@pytest.mark.parametrize(("source", "counted"), [(Source.PROVIDER, 1), (Source.ESTIMATED, 0), (Source.NONE, 0)])
def test_a_report_at_the_hold_is_counted_where_the_provider_told_numbers(ledger, source, counted):
    request_id, _ = admit(ledger)
    settle(ledger, settled(request_id, outcome=Outcome.SETTLED_AT_HOLD, usage={}, source=source))
    assert ledger.take_events()["implausible_usage"] == counted


def test_a_provider_that_bills_more_than_its_own_limit_is_charged_in_full(ledger, db):
    request_id, _ = admit(ledger)
    settle(ledger, settled(request_id, read=10, written=2000))
    assert token_row(db)["total_spent_nanos"] == 2010 * TOKEN_PRICE
    assert ledger.take_events()["overrun"] == 1
    assert isinstance(admit(ledger)[1], errors.BudgetExhausted)


def test_more_than_a_hundred_holds_is_no_number_that_anyone_meant(ledger, db):
    request_id, _ = admit(ledger)
    settle(ledger, settled(request_id, read=10, written=10_001))
    assert request_row(db, request_id)["cost_nanos"] == 100 * TOKEN_PRICE


def test_an_estimate_is_charged_up_to_the_hold(ledger, db):
    request_id, _ = admit(ledger)
    settle(ledger, settled(request_id, read=10, written=500, source=Source.ESTIMATED))
    assert request_row(db, request_id)["cost_nanos"] == 100 * TOKEN_PRICE


def test_a_call_of_which_nothing_can_be_known_costs_its_hold(ledger, db):
    request_id, _ = admit(ledger)
    settle(ledger, settled(request_id, outcome=Outcome.SETTLED_AT_HOLD, usage={}))
    assert request_row(db, request_id)["cost_nanos"] == 100 * TOKEN_PRICE


def test_an_expired_call_is_charged_its_hold_until_a_late_report_replaces_it(ledger, db):
    request_id, _ = admit(ledger)
    assert ledger.expire(proxy_id=PROXY) == 1
    assert (token_row(db)["held_nanos"], token_row(db)["total_spent_nanos"]) == (0, 100 * TOKEN_PRICE)
    assert request_row(db, request_id)["state"] == "expired"
    settle(ledger, settled(request_id))
    assert token_row(db)["total_spent_nanos"] == 30 * TOKEN_PRICE
    assert token_row(db)["open_calls"] == 0


def test_only_calls_that_were_open_still_count_as_expired(ledger, db):
    reported, other, open_still = (admit(ledger, read=1, limit=1)[0] for _ in range(3))
    settle(ledger, settled(reported, read=1, written=0))
    ledger.expire(request_ids=[other])  # by another sweeper, just before
    assert ledger.expire(request_ids=[reported, other, *(uuid7() for _ in range(400)), open_still]) == 1
    assert token_row(db)["total_spent_nanos"] == (1 + 2 + 2) * TOKEN_PRICE
    assert db.query("SELECT requests, cost_nanos FROM daily_totals") == [(1, 5 * TOKEN_PRICE)]


def test_an_expired_call_is_final_after_a_week(ledger, db, clock):
    request_id, _ = admit(ledger)
    ledger.expire(request_ids=[request_id])
    clock.offset = timedelta(days=8)
    assert isinstance(settle(ledger, settled(request_id)), errors.FailedPrecondition)
    assert token_row(db)["total_spent_nanos"] == 100 * TOKEN_PRICE


def test_an_id_of_last_month_is_refused(ledger, clock):
    clock.offset = timedelta(days=30)
    assert isinstance(admit(ledger)[1], errors.FailedPrecondition)


def test_the_price_of_the_admission_is_the_price_of_the_settlement(ledger, db):
    from gateway.storage.prices import load_rows
    from tests.support.ledger import price

    request_id, _ = admit(ledger)
    load_rows(db, "file", [price(MODEL, input="2000", output="2000")], "2026-02-01T00:00:00.000000Z")
    settle(ledger, settled(request_id))
    assert request_row(db, request_id)["cost_nanos"] == 30 * TOKEN_PRICE
    _, answer = admit(ledger)
    assert answer.held_nanos == 200 * TOKEN_PRICE


def test_disabling_and_cutting_the_models_hold_from_the_next_call_on(ledger, db):
    request_id, _ = admit(ledger)
    with db.write():
        db.run("UPDATE client_tokens SET enabled = 0")
    assert isinstance(admit(ledger)[1], errors.TokenDisabled)
    with db.write():
        db.run("UPDATE client_tokens SET enabled = 1, allowed_models = 'gpt-4'")
    assert isinstance(admit(ledger)[1], errors.ModelNotAllowed)
    assert isinstance(settle(ledger, settled(request_id)), Settled)


def test_a_look_holds_nothing_and_writes_no_row(ledger, db):
    _, answer = admit(ledger, request_id="")
    assert answer == Admitted(1, 0, None)
    assert db.query("SELECT * FROM requests") == []


def test_a_hundred_calls_of_a_cent_one_after_another_spend_a_dollar_exactly(ledger, db):
    from gateway.quota import Call

    for _ in range(100):
        request_id, answer = admit(ledger, call=Call("cent", 10, None), candidates=(("demo", "cent"),))
        assert isinstance(answer, Admitted)
        settle(ledger, settled(request_id, model="cent"))
    assert token_row(db)["total_spent_nanos"] == DOLLAR
    assert isinstance(admit(ledger)[1], errors.BudgetExhausted)


def test_five_hundred_at_once_pass_a_hundred_times(ledger, db):
    from gateway.quota import Call

    passed = []

    def run():
        request_id, answer = admit(ledger, call=Call("cent", 10, None), candidates=(("demo", "cent"),))
        if isinstance(answer, Admitted):
            passed.append(request_id)
            settle(ledger, settled(request_id, model="cent"))

    threads = [threading.Thread(target=run) for _ in range(500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 100
    assert token_row(db)["total_spent_nanos"] == DOLLAR


def test_what_was_answered_is_there_after_a_crash(ledger, db):
    request_id, _ = admit(ledger)
    again = open_ledger(db)  # the first one is never closed before this one works: as after a kill
    assert settle(again, settled(request_id)).cost_nanos == 30 * TOKEN_PRICE
    again.close()


def test_a_locked_database_is_told_soon_and_nothing_is_lost(db, clock, database_url):
    other = connect(database_url)
    again = connect(database_url, busy_timeout=0.05)
    quick = open_ledger(again, clock)
    with other.write():
        other.query(f"SELECT id FROM client_tokens ORDER BY id{other.locking}")
        if other.is_shared:  # a row that is held is the trouble of this call alone
            (answer,) = quick.commit([], [admission()]).admissions
            assert isinstance(answer, errors.DatabaseUnavailable)
        else:
            with pytest.raises(errors.DatabaseUnavailable):
                quick.commit([], [admission()])
    assert isinstance(admit(quick)[1], Admitted)
    quick.close()
    again.close()
    other.close()


def test_a_ledger_that_cannot_write_says_so_and_says_when_it_can_again(db, clock, database_url):
    again = connect(database_url, busy_timeout=0.05)
    quick = open_ledger(again, clock)
    assert quick.is_working()
    other = connect(database_url)
    with other.write():
        if other.is_shared:
            other.run("LOCK TABLE client_tokens, meta IN ACCESS EXCLUSIVE MODE")
            quick._failing = True  # a lock is waited for, and refuses items alone
        else:
            with pytest.raises(errors.DatabaseUnavailable):
                quick.commit([], [admission()])
        assert not quick.is_working()
    assert quick.is_working()
    quick.close()
    again.close()
    other.close()


def test_unknown_tokens_are_unknown_whatever_they_look_like(ledger):
    for secret in ("", "x", SECRET.upper(), f"{SECRET} ", "' OR 1=1 --", "\u0000", "é" * 100):
        assert isinstance(admit(ledger, secret=secret)[1], errors.TokenUnknown)
