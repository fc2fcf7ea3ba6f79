"""An index by which old ids of changes are found, so that they can be forgotten a few at a time."""

from __future__ import annotations

from typing import Any


def up(migrator: Any, db: Any) -> None:
    """Makes the index; the same statement on either database."""
    db.execute_sql("CREATE INDEX operations_created_at ON operations (created_at, request_id)")
