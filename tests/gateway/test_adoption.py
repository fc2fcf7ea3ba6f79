"""Rows that a person wrote into the table become client tokens, and the plain text is gone from every file."""

from __future__ import annotations

import subprocess

import pytest

from gateway import errors
from gateway.admission import Admitted
from gateway.storage.reconcile import reconcile
from tests.support.ledger import DOLLAR, add_token, admission, make_database, open_ledger, token_row


@pytest.fixture
def db(tmp_path):
    db = make_database(tmp_path)
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


def by_hand(tmp_path, sql):
    # The shell gives up at once where another writer is in the middle of a transaction; a person would just try again.
    subprocess.run(["sqlite3", "-cmd", ".timeout 2000", str(tmp_path / "gateway.db"), sql], check=True, timeout=10)


def test_the_shortest_insert_works_while_the_ledger_runs(ledger, tmp_path):
    assert isinstance(look(ledger, "my-token"), errors.TokenUnknown)
    by_hand(tmp_path, "INSERT INTO client_tokens (name, token) VALUES ('my-first-token', 'my-token')")
    assert isinstance(look(ledger, "my-token"), Admitted)


def test_a_whole_row_is_judged_by_all_that_stands_in_it(ledger, db, tmp_path):
    columns = "name, token, allowed_models, max_amount, enabled, expires_at, amount_spent"
    by_hand(
        tmp_path,
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


def test_the_plain_text_is_in_no_file_afterwards(ledger, db, tmp_path):
    for number in range(200):
        by_hand(
            tmp_path, f"INSERT INTO client_tokens (token) VALUES ('plain-text-of-token-{number:04}')"
        ) if number < 3 else None
    add_token(db, "plain-text-of-token-9999")
    assert isinstance(look(ledger, "plain-text-of-token-0002"), Admitted)
    ledger.beats()
    ledger.commit([], [])
    found = [file.name for file in tmp_path.iterdir() if b"plain-text-of-token" in file.read_bytes()]
    assert found == []


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


def test_sql_itself_refuses_what_can_never_be_a_token(tmp_path, db):
    for values in ("'short', NULL, NULL", "'long-enough', -1, NULL", "'long-enough', NULL, -5"):
        sql = f"INSERT INTO client_tokens (token, max_amount, amount_spent) VALUES ({values})"
        done = subprocess.run(["sqlite3", str(tmp_path / "gateway.db"), sql], check=False, capture_output=True, timeout=10)
        assert b"CHECK constraint failed" in done.stderr


def test_amounts_written_over_a_living_token_hold_from_the_next_call_on(ledger, db, tmp_path):
    add_token(db)
    assert isinstance(look(ledger, "a-token-for-tests"), Admitted)
    by_hand(tmp_path, "UPDATE client_tokens SET max_amount = 2, amount_spent = 2")
    assert isinstance(look(ledger, "a-token-for-tests"), errors.BudgetExhausted)
    by_hand(tmp_path, "UPDATE client_tokens SET amount_spent = 0.5")
    assert isinstance(look(ledger, "a-token-for-tests"), Admitted)
    assert token_row(db)["total_spent_nanos"] == DOLLAR // 2


def test_a_row_without_a_name_is_called_by_its_number(ledger, db):
    add_token(db, "nameless-token", name=None)
    look(ledger, "nameless-token")
    assert db.query("SELECT name FROM client_tokens") == [("token-1",)]
