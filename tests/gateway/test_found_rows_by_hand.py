"""Rows by hand that nothing can be made of, or nearly nothing: they keep no other row from being adopted."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.admission import Admitted
from gateway.clock import parse_expiry
from tests.support.ledger import admission, make_database, open_ledger


def test_the_last_day_of_the_calendar_is_a_date_like_any_other():
    assert parse_expiry("9999-12-31") == datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+05:00"])
def test_a_moment_outside_of_the_calendar_is_refused_in_words(text):
    with pytest.raises(ValueError, match="lies outside"):
        parse_expiry(text)


@pytest.mark.parametrize("text", ["9999-12-31", "9999-12-31T23:59:59-01:00"])
def test_a_far_expiry_does_not_keep_other_rows_from_being_adopted(tmp_path, text):
    db = make_database(tmp_path)
    ledger = open_ledger(db)
    with db.write():
        db.run("INSERT INTO client_tokens (name, token, expires_at) VALUES ('far', 'token-that-never-ends', ?)", (text,))
        db.run("INSERT INTO client_tokens (name, token) VALUES ('other', 'another-plain-token')")

    (answer,) = ledger.commit([], [admission(secret="another-plain-token")]).admissions

    assert isinstance(answer, Admitted)
    ledger.close()
    db.close()


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("name, token", "'bytes', x'6162636465666768'"),
        ("name, token", "x'ff00', 'token-with-bytes-for-a-name'"),
        ("name, token, allowed_models", "'bytes', 'token-with-bytes-for-models', x'ff'"),
        ("name, token", "'broken', CAST(x'ff41424344454647484950' AS TEXT)"),
    ],
)
def test_a_row_that_is_not_text_is_disabled_and_others_are_adopted(tmp_path, columns, values):
    db = make_database(tmp_path)
    ledger = open_ledger(db)
    with db.write():
        db.run(f"INSERT INTO client_tokens ({columns}) VALUES ({values})")
        db.run("INSERT INTO client_tokens (name, token) VALUES ('other', 'another-plain-token')")

    (answer,) = ledger.commit([], [admission(secret="another-plain-token")]).admissions

    assert isinstance(answer, Admitted)
    assert db.query("SELECT enabled, token FROM client_tokens ORDER BY id") == [(0, None), (1, None)]
    ledger.close()
    db.close()
