"""Rows that a person wrote into the table become client tokens, and the plain text is gone from every file."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

from gateway import errors
from gateway.admission import Admitted
from gateway.storage.reconcile import reconcile
from tests.support.ledger import DOLLAR, add_token, admission, make_database, open_ledger, token_row
from tests.support.postgres import shared_server


@pytest.fixture
def db(database_url):
    db = make_database(database_url)
    yield db
    assert reconcile(db) == []
    db.close()


@pytest.fixture
def ledger(db):
    ledger = open_ledger(db)
    yield ledger
    ledger.close()


def look(ledger, secret):
    (answer,) = ledger.commit([], [admission(secret=secret)]).admissions
    return answer


def by_hand(database_url, sql):
    """Runs a statement as a person would; gives what was said against it."""
    if database_url.startswith("postgresql:"):
        with psycopg.connect(database_url) as connection:
            try:
                connection.execute(sql)
            except psycopg.Error as error:
                return str(error)
        return ""
    # The shell gives up at once where another writer is in the middle of a transaction; a person would just try again.
    file = database_url.removeprefix("sqlite:///")
    done = subprocess.run(["sqlite3", "-cmd", ".timeout 2000", file, sql], check=False, capture_output=True, timeout=10)
    return done.stderr.decode()


def test_the_shortest_insert_works_while_the_ledger_runs(ledger, database_url):
    assert isinstance(look(ledger, "my-token"), errors.TokenUnknown)
    assert not by_hand(database_url, "INSERT INTO client_tokens (name, token) VALUES ('my-first-token', 'my-token')")
    assert isinstance(look(ledger, "my-token"), Admitted)


def test_a_whole_row_is_judged_by_all_that_stands_in_it(ledger, db, database_url):
    columns = "name, token, allowed_models, max_amount, enabled, expires_at, amount_spent"
    assert not by_hand(
        database_url,
        f"INSERT INTO client_tokens ({columns}) VALUES"
        " ('a', 'token-aaaa', 'thousandth, claude-3', 100.0, 1, '2027-12-31', 25.5),"
        " ('b', 'token-bbbb', 'gpt-4', 100.0, 1, '2027-12-31', 25.5),"
        " ('c', 'token-cccc', '', 100.0, 0, '2027-12-31', 0),"
        " ('d', 'token-dddd', '', 100.0, 1, '2020-12-31', 0),"
        " ('e', 'token-eeee', '', 100.0, 1, NULL, 100)",
    )
    assert isinstance(look(ledger, "token-aaaa"), Admitted)
    assert isinstance(look(ledger, "token-bbbb"), errors.ModelNotAllowed)
    assert isinstance(look(ledger, "token-cccc"), errors.TokenDisabled)
    assert isinstance(look(ledger, "token-dddd"), errors.TokenExpired)
    assert isinstance(look(ledger, "token-eeee"), errors.BudgetExhausted)
    rows = db.query(
        "SELECT max_amount_nanos, opening_nanos, total_spent_nanos, token, max_amount FROM client_tokens WHERE id = 1"
    )
    assert rows == [(100 * DOLLAR, 25_500_000_000, 25_500_000_000, None, None)]


def test_the_plain_text_is_in_no_file_afterwards(ledger, db, tmp_path, database_url):
    for number in range(3):
        assert not by_hand(database_url, f"INSERT INTO client_tokens (token) VALUES ('plain-text-of-token-{number:04}')")
    add_token(db, "plain-text-of-token-9999")
    assert isinstance(look(ledger, "plain-text-of-token-0002"), Admitted)
    ledger.beats()
    ledger.commit([], [])
    assert db.query("SELECT 1 FROM meta WHERE key = 'truncate_write_ahead_log'") == []
    folder = tmp_path
    if database_url.startswith("postgresql:"):  # its own log apart, which the server reuses and archives as it likes
        by_hand(database_url, "CHECKPOINT")
        ((oid,),) = db.query("SELECT oid FROM pg_database WHERE datname = current_database()")
        folder = shared_server().data / "base" / str(oid)
    files = list(folder.iterdir())
    assert files
    assert [file.name for file in files if b"plain-text-of-token" in file.read_bytes()] == []


def test_a_token_that_a_live_one_already_has_is_disabled_and_audited(ledger, db):
    add_token(db, "the-same-token")
    assert isinstance(look(ledger, "the-same-token"), Admitted)
    add_token(db, "the-same-token")
    assert isinstance(look(ledger, "not-known-at-all"), errors.TokenUnknown)
    assert (token_row(db, 1)["enabled"], token_row(db, 2)["enabled"]) == (1, 0)
    assert db.query("SELECT subject FROM audit WHERE action = 'token.disable_unreadable'") == [("token:2",)]
    assert isinstance(look(ledger, "the-same-token"), Admitted)


def test_a_day_that_cannot_be_read_disables_the_row(ledger, db):
    add_token(db, "a-token-without-day", expires_at="next week")
    assert isinstance(look(ledger, "a-token-without-day"), errors.TokenDisabled)


def test_sql_itself_refuses_what_can_never_be_a_token(database_url, db):
    for values in ("'short', NULL, NULL", "'long-enough', -1, NULL", "'long-enough', NULL, -5"):
        sql = f"INSERT INTO client_tokens (token, max_amount, amount_spent) VALUES ({values})"
        assert "check constraint" in by_hand(database_url, sql).lower()


def test_amounts_written_over_a_living_token_hold_from_the_next_call_on(ledger, db, database_url):
    add_token(db)
    assert isinstance(look(ledger, "a-token-for-tests"), Admitted)
    assert not by_hand(database_url, "UPDATE client_tokens SET max_amount = 2, amount_spent = 2")
    assert isinstance(look(ledger, "a-token-for-tests"), errors.BudgetExhausted)
    assert not by_hand(database_url, "UPDATE client_tokens SET amount_spent = 0.5")
    assert isinstance(look(ledger, "a-token-for-tests"), Admitted)
    assert token_row(db)["total_spent_nanos"] == DOLLAR // 2


def test_a_row_without_a_name_is_called_by_its_number(ledger, db):
    add_token(db, "nameless-token", name=None)
    look(ledger, "nameless-token")
    assert db.query("SELECT name FROM client_tokens") == [("token-1",)]
