"""Guards that stand behind others, each looked at alone: what the database itself refuses, what is synced, what is freed."""

from __future__ import annotations

import sqlite3
import threading
from datetime import timedelta

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from gateway import errors
from gateway.admission import Admitted
from gateway.clock import to_text
from gateway.storage.reconcile import reconcile
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics
from services.auth.sweeper import Sweeper
from tests.support.ledger import (
    PROXY,
    TOKEN_PRICE,
    MovedClock,
    add_token,
    admission,
    make_database,
    open_ledger,
    request_row,
    settled,
    token_row,
)

REFUSED = (sqlite3.IntegrityError, psycopg.errors.UniqueViolation)


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
    (answer,) = ledger.commit([], [asked]).admissions
    return asked.request_id, answer


def test_the_database_itself_refuses_a_second_row_of_a_call(db, ledger):
    request_id, _ = admit(ledger)
    columns = "request_id, token_id, identity, state, admitted_at, held_nanos"
    with pytest.raises(REFUSED), db.write():
        db.run(f"INSERT INTO requests ({columns}) SELECT {columns} FROM requests WHERE request_id = ?", (request_id,))
    assert db.query("SELECT COUNT(*) FROM requests") == [(1,)]


def test_the_database_itself_refuses_a_second_live_token_with_one_secret(db, ledger):
    admit(ledger)  # adopts the token: its hash is in the row
    copy = (
        "INSERT INTO client_tokens (name, token_hash, deleted_at) SELECT 'copy', token_hash, {} FROM client_tokens WHERE id = 1"
    )
    with pytest.raises(REFUSED), db.write():
        db.run(copy.format("NULL"))
    with db.write():
        db.run(copy.format("'2026-01-01T00:00:00.000000Z'"))  # one that was deleted had it before
    assert isinstance(admit(ledger)[1], Admitted)


def test_a_call_that_was_reported_does_not_expire(db, ledger):
    request_id, _ = admit(ledger)
    ledger.commit([settled(request_id)], [])
    ledger.expire(request_ids=[request_id])  # the sweeper had seen it open
    assert request_row(db, request_id)["state"] == "settled"
    assert token_row(db)["total_spent_nanos"] == 30 * TOKEN_PRICE
    assert (token_row(db)["held_nanos"], token_row(db)["open_calls"]) == (0, 0)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps_frees_nothing_and_keeps_nothing(db, ledger, clock, hours):
    sweeper = Sweeper(db=db, ledger=ledger, denials=DenialLog(clock), clock=clock, metrics=AuthMetrics(CollectorRegistry()))
    request_id, _ = admit(ledger)
    ledger.beat(PROXY, "here")
    for _ in range(11):  # 50 s without a sign of life, in which the clock jumps ten times
        sweeper.look()
        clock.seconds += 5
        clock.offset += timedelta(hours=hours)
    assert request_row(db, request_id)["state"] == "admitted"
    for _ in range(3):
        sweeper.look()
        clock.seconds += 5
    assert request_row(db, request_id)["state"] == "expired"


def test_a_token_opens_nothing_from_the_moment_on_at_which_it_expires(db, ledger, clock):
    add_token(db, "a-token-for-an-hour", expires_at=to_text(clock.now() + timedelta(hours=1)))
    assert isinstance(admit(ledger, secret="a-token-for-an-hour")[1], Admitted)
    clock.offset = timedelta(minutes=59, seconds=58)
    assert isinstance(admit(ledger, secret="a-token-for-an-hour")[1], Admitted)
    clock.offset = timedelta(hours=1)
    assert isinstance(admit(ledger, secret="a-token-for-an-hour")[1], errors.TokenExpired)


def test_a_deleted_token_is_not_opened_by_a_report_on_one_of_its_calls(db, ledger):
    """The report brings the token's row into the batch; the admission beside it must not find it there."""
    request_id, _ = admit(ledger)
    with db.write():
        db.run("UPDATE client_tokens SET deleted_at = '2026-01-01T00:00:00.000000Z'")
    outcome = ledger.commit([settled(request_id)], [admission()])
    assert outcome.settlements[0].cost_nanos == 30 * TOKEN_PRICE
    assert isinstance(outcome.admissions[0], errors.TokenUnknown)


def test_a_commit_in_sqlite_is_synced_before_it_is_answered(tmp_path):
    """On every thread: each has a connection of its own, and SQLite keeps the setting by connection."""
    db = make_database(tmp_path)
    found = []

    def look():
        found.append((db.query("PRAGMA synchronous"), db.query("PRAGMA journal_mode")))

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [([(2,)], [("wal",)])] * 2  # 2: FULL, which syncs the write-ahead log with each commit
    db.close()
