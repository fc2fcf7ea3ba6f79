"""A full disk is a database that is away for a while, whoever notices it first."""

from __future__ import annotations

import pytest

from gateway.errors import DatabaseUnavailable
from tests.support.ledger import make_database


def test_a_full_disk_is_told_as_a_database_that_is_away_and_passes(tmp_path):
    db = make_database(tmp_path)
    ((pages,),) = db.query("PRAGMA page_count")
    db.query(f"PRAGMA max_page_count = {pages}")
    add = "INSERT INTO client_tokens (name, remark) VALUES ('large', ?)"

    for _ in range(2):
        with pytest.raises(DatabaseUnavailable), db.write():
            db.run(add, ("x" * 1_000_000,))

    db.query(f"PRAGMA max_page_count = {pages + 1000}")
    with db.write():
        db.run(add, ("x" * 1_000_000,))
    assert db.query("SELECT count(*) FROM client_tokens") == [(1,)]
    db.close()
