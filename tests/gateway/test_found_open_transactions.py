"""A person, or pg_dump, with a transaction open beside the ledger: whoever is not concerned by it notices nothing."""

from __future__ import annotations

import time

import psycopg
import pytest

from gateway import errors
from gateway.admission import Admitted
from gateway.client_tokens import NewToken
from gateway.storage import batch_rows
from gateway.storage.adoption import has_inbox
from gateway.storage.audit import Actor
from gateway.storage.database import connect
from gateway.storage.faults import RowLocked
from gateway.storage.reconcile import reconcile
from gateway.storage.tokens import TokenStore
from tests.support.ledger import KEY, MovedClock, add_token, admission, make_database, open_ledger


@pytest.fixture
def db(postgres_url):
    db = make_database(postgres_url)
    yield db
    assert reconcile(db) == []
    db.close()


@pytest.fixture
def ledger(db, postgres_url):
    """A ledger that waits for rows as long as auth does."""
    database = connect(postgres_url)
    ledger = open_ledger(database)
    yield ledger
    ledger.close()
    database.close()


def look(ledger, secret):
    (answer,) = ledger.commit([], [admission(secret=secret, limit=1, read=1)]).admissions
    return answer


def test_a_table_that_is_being_read_for_long_is_scrubbed_later_and_calls_do_not_wait_for_it(ledger, db, postgres_url):
    add_token(db, "a-token-that-is-known")
    assert isinstance(look(ledger, "a-token-that-is-known"), Admitted)
    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT count(*) FROM client_tokens")  # held to the end of the transaction, as pg_dump does
        add_token(db, "a-token-that-is-new")
        assert isinstance(look(ledger, "a-token-that-is-new"), Admitted)
        began = time.monotonic()
        assert all(isinstance(look(ledger, "a-token-that-is-known"), Admitted) for _ in range(10))
        assert time.monotonic() - began < 1.0
    ends = time.monotonic() + 10
    while db.query("SELECT 1 FROM meta WHERE key = 'truncate_write_ahead_log'"):
        assert time.monotonic() < ends, "the plain text was never scrubbed"
        time.sleep(0.05)


def test_a_row_that_a_person_holds_keeps_no_other_one_from_being_adopted(ledger, db, postgres_url):
    add_token(db, "a-token-that-is-held")
    with psycopg.connect(postgres_url) as person:
        person.execute("UPDATE client_tokens SET remark = 'mine' WHERE token = 'a-token-that-is-held'")
        add_token(db, "a-token-that-is-free")
        assert isinstance(look(ledger, "a-token-that-is-free"), Admitted)
        assert isinstance(look(ledger, "a-token-of-nobody"), errors.TokenUnknown)
        # Its own answer, not a fault of auth: the proxy would pass over an auth whose database is away.
        assert isinstance(look(ledger, "a-token-that-is-held"), RowLocked)
    assert isinstance(look(ledger, "a-token-that-is-held"), Admitted)


def test_administrators_list_and_make_tokens_while_a_person_holds_a_new_row(db, postgres_url):
    add_token(db, "a-token-that-is-held")
    database = connect(postgres_url)
    store = TokenStore(database, token_key=KEY, clock=MovedClock())
    with psycopg.connect(postgres_url) as person:
        person.execute("UPDATE client_tokens SET remark = 'mine' WHERE token = 'a-token-that-is-held'")
        made = store.create(NewToken(name="another"), actor=Actor("operator"))
        assert [token.name for token in store.page(limit=10)] == ["another", "t"]
    assert [token.remark for token in store.page(limit=10)] == ["", "mine"]
    assert not has_inbox(db)
    assert made.token.name == "another"
    database.close()


def test_a_token_that_another_process_adopts_between_two_looks_is_known(ledger, db, monkeypatch):
    other = open_ledger(db)

    def look_late(database):
        if database is not db:
            look(other, "a-token-by-hand")
        return has_inbox(database)

    add_token(db, "a-token-by-hand")
    monkeypatch.setattr(batch_rows, "has_inbox", look_late)
    try:
        assert isinstance(look(ledger, "a-token-by-hand"), Admitted)
    finally:
        other.close()
