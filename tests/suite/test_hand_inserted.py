"""The first token without any API: a row written with sqlite3 while the services run."""

from __future__ import annotations

import subprocess

import pytest

from tests.suite.audit import files_with, open_holds
from tests.suite.conftest import RATES, Installation
from tests.suite.load import calls
from tests.suite.stack import wait_for

COST = RATES.nanos({"prompt_tokens": 10, "completion_tokens": 10})


def run_sql(suite: Installation, statement: str) -> None:
    """What `sqlite3 data/gateway.db "INSERT …"` does, with the interpreter's own shell where there is no other."""
    code = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute(sys.argv[2]); db.commit(); db.close()"
    python = suite.stack.environment | {}
    subprocess.run(["python3", "-c", code, str(suite.stack.database), statement], env=python, check=True)


async def test_the_very_next_call_with_a_hand_inserted_token_passes(suite):
    run_sql(suite, "INSERT INTO client_tokens (name, token) VALUES ('my-first-token', 'my-token-of-the-test')")
    [told] = await calls(suite.stack.base_url, "my-token-of-the-test", 1, at_once=1, model="gpt-test")
    assert told.whole
    # A reader of that moment, such as admin, may hold the write-ahead log for an instant longer.
    wait_for("the plain text is gone", lambda: not files_with(suite.stack.data, "my-token-of-the-test"), seconds=2)
    wait_for("the call is reported", lambda: open_holds(suite.stack.database) == 0)
    [row] = suite.stack.query("SELECT * FROM client_tokens WHERE name = 'my-first-token'")
    assert row["token"] is None and row["token_hash"] and row["total_spent_nanos"] == COST


async def test_all_columns_that_a_person_writes_are_obeyed(suite):
    run_sql(
        suite,
        "INSERT INTO client_tokens (name, token, allowed_models, max_amount, enabled, expires_at, amount_spent)"
        " VALUES ('whole', 'whole-token-of-the-test', 'gpt-test,claude-3', 100.0, 1, '2099-12-31', 25.5)",
    )
    token = "whole-token-of-the-test"
    [passes] = await calls(suite.stack.base_url, token, 1, at_once=1, model="gpt-test")
    [refused] = await calls(suite.stack.base_url, token, 1, at_once=1, model="cent")
    assert passes.whole
    assert (refused.status, refused.code) == (403, "model_not_allowed")
    wait_for("the call is reported", lambda: open_holds(suite.stack.database) == 0)
    [row] = suite.stack.query("SELECT * FROM client_tokens WHERE name = 'whole'")
    assert (row["max_amount_nanos"], row["opening_nanos"]) == (100_000_000_000, 25_500_000_000)
    assert row["total_spent_nanos"] == 25_500_000_000 + COST
    assert (row["token"], row["max_amount"], row["amount_spent"]) == (None, None, None)


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("enabled", 0, "token_disabled"),
        ("expires_at", "2001-01-01", "token_expired"),
        ("amount_spent", 3, "insufficient_quota"),
    ],
)
async def test_the_first_call_is_judged_by_the_row_even_when_it_is_refused(suite, column, value, code):
    token = suite.token(**{"max_amount": 3, column: value})
    [told] = await calls(suite.stack.base_url, token, 1, at_once=1, model="gpt-test")
    assert told.code == code
