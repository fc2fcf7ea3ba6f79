"""For books that grow old: pages of the request log, counts of refusals by age, and what single calls were repriced by."""

from __future__ import annotations

from typing import Any

from peewee import SqliteDatabase

_STATEMENTS = (
    # The log of a large token filtered by a rare model: without it, a page reads all of the token's calls.
    # It is over an expression so that no other index is taken in its place.
    "CREATE INDEX requests_token_model ON requests (token_id, (request_model || ''), request_id)",
    # Calls of an hour whose ids were made at another time, and the end of a walk over an hour: without it, a page reads a week.
    "CREATE INDEX requests_admitted_at ON requests (admitted_at, request_id)",
    # These cost only the calls that end so, which are few beside those that are settled. The odd condition keeps the index over
    # all calls that ended so, whoever made them, from being taken in their place.
    "CREATE INDEX requests_token_released ON requests (token_id, request_id) WHERE state || '' = 'released'",
    "CREATE INDEX requests_token_expired ON requests (token_id, request_id) WHERE state || '' = 'expired'",
    "CREATE INDEX requests_model_released ON requests (request_model, request_id) WHERE state || '' = 'released'",
    "CREATE INDEX requests_model_expired ON requests (request_model, request_id) WHERE state || '' = 'expired'",
    "CREATE INDEX denials_minute ON denials (minute)",
    # What adjustments have added to single calls, so that no call is repriced twice. A row goes with its call's.
    """
    CREATE TABLE repriced_calls (
        request_id {text} NOT NULL PRIMARY KEY,
        price_id BIGINT,
        amount_nanos BIGINT NOT NULL,
        adjustment_id BIGINT NOT NULL
    )""",
)


def up(migrator: Any, db: Any) -> None:
    """Makes the indexes and the table."""
    text = "TEXT" if isinstance(db, SqliteDatabase) else 'TEXT COLLATE "C"'
    for statement in _STATEMENTS:
        db.execute_sql(statement.format(text=text))
