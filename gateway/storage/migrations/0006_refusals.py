"""Single refusals, so that whoever was refused is found by the request id of the answer."""

from __future__ import annotations

from typing import Any

from peewee import SqliteDatabase

_STATEMENTS = (
    # token_id is 0 where no live token had the secret, so it refers to no row.
    """
    CREATE TABLE refusals (
        request_id {text} NOT NULL PRIMARY KEY,
        at {text} NOT NULL,
        token_id BIGINT NOT NULL,
        reason TEXT NOT NULL,
        message TEXT NOT NULL,
        figures TEXT NOT NULL DEFAULT '{{}}',
        endpoint TEXT NOT NULL DEFAULT '',
        request_model TEXT NOT NULL DEFAULT '',
        client_ip TEXT NOT NULL DEFAULT ''
    )""",
    "CREATE INDEX refusals_at ON refusals (at, request_id)",
)


def up(migrator: Any, db: Any) -> None:
    """Makes the table and its index."""
    text = "TEXT" if isinstance(db, SqliteDatabase) else 'TEXT COLLATE "C"'
    for statement in _STATEMENTS:
        db.execute_sql(statement.format(text=text))
