"""Identities whose certificates are revoked: an internal service's key that got into other hands."""

from __future__ import annotations

from typing import Any

from peewee import SqliteDatabase

_STATEMENT = """
    CREATE TABLE revoked_identities (
        name {text} NOT NULL PRIMARY KEY,
        issued_until {text} NOT NULL,
        revoked_at {text} NOT NULL,
        actor TEXT NOT NULL
    )"""


def up(migrator: Any, db: Any) -> None:
    """Makes the table."""
    text = "TEXT" if isinstance(db, SqliteDatabase) else 'TEXT COLLATE "C"'
    db.execute_sql(_STATEMENT.format(text=text))
