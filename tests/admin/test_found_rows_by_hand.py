"""Rows of tokens that a person wrote, with times that are none: they are shown, and so are the others."""

from __future__ import annotations

import pytest

from gateway.clock import SystemClock
from gateway.storage.tokens import TokenStore
from tests.support.ledger import KEY, add_token, make_database


@pytest.mark.parametrize("column", ["created_at", "last_used_at", "expires_at"])
@pytest.mark.parametrize("text", ["", "yesterday", "2027-13-01", "0001-01-01T00:00:00+14:00"])
def test_a_time_that_is_none_hides_no_token(tmp_path, column, text):
    db = make_database(tmp_path)
    add_token(db, "a-token-that-is-sound")
    add_token(db, "a-token-with-an-odd-time", **{column: text})
    store = TokenStore(db, token_key=KEY, clock=SystemClock())
    assert [token.id for token in store.page(limit=10)] == [2, 1]
    assert store.get(2).id == 2
    db.close()
