"""What one call, one look or one change costs does not grow with the tokens and the calls that are there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.client_tokens import NewToken
from gateway.clock import SystemClock
from gateway.storage import token_usage
from gateway.storage.audit import Actor
from gateway.storage.sqlite import SqliteDatabase
from gateway.storage.tokens import TokenStore
from gateway.tokens import hash_secret
from tests.support.ledger import KEY, add_token, admission, make_database, open_ledger, settled

FEW, MANY = 20, 3000


@pytest.fixture
def db(tmp_path):
    db = make_database(tmp_path)
    yield db
    db.close()


def add_tokens(db, first: int, last: int) -> None:
    with db.write():
        db.run_many(
            "INSERT INTO client_tokens (id, name, token_hash) VALUES (?, 't', ?)",
            [(number, hashed(number)) for number in range(first, last + 1)],
        )


def hashed(number: int) -> str:
    return hash_secret(KEY, f"a-token-of-many-{number}").hex()


def steps(db, run: Callable[[], object]) -> int:
    """How many hundreds of SQLite's instructions something takes on this thread."""
    counted = [0]

    def count() -> None:
        counted[0] += 1

    connection = db.connection()
    connection.set_progress_handler(count, 100)
    try:
        run()
    finally:
        connection.set_progress_handler(None, 0)
    return counted[0]


def test_tokens_are_found_by_their_secrets_in_as_many_steps_among_many_as_among_few(db):
    store = TokenStore(db, token_key=KEY, clock=SystemClock())
    work = {
        "the books of a token": lambda: token_usage.find(db, hashed(7), SystemClock().now()),
        "the books of no token": lambda: token_usage.find(db, hashed(0), SystemClock().now()),
        "a new token": lambda: store.create(NewToken(name="new"), actor=Actor("admin:ann")),
    }
    add_tokens(db, 1, FEW)
    for run in work.values():
        run()  # what is read once for all
    before = {name: steps(db, run) for name, run in work.items()}
    add_tokens(db, 1000, 1000 + MANY)
    after = {name: steps(db, run) for name, run in work.items()}
    assert {name: count for name, count in after.items() if count > before[name] + 5} == {}, before


def test_a_write_ahead_log_that_has_grown_is_not_moved_after_every_batch(db, monkeypatch):
    """Its file stays as long as it was; each move costs two syncs."""
    moved: list[str] = []
    real = SqliteDatabase._checkpoint

    def checkpoint(self, kind):
        moved.append(kind)
        return real(self, kind)

    monkeypatch.setattr(SqliteDatabase, "_checkpoint", checkpoint)
    add_token(db, max_amount="1000")
    ledger = open_ledger(db)
    ledger.commit([], [admission(request_id="")])  # adopts the token
    with db.write():
        db.run("INSERT INTO meta (key, value) VALUES ('ballast', ?)", ("x" * (5 << 20),))
    for _ in range(30):
        asked = admission(limit=1, read=1)
        ledger.commit([], [asked])
        ledger.commit([settled(asked.request_id, read=1, written=1)], [])
    assert 1 <= moved.count("PASSIVE") < 30
    ledger.close()
