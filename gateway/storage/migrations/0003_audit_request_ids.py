"""The id of the request by which something was done, so that a record of the audit leads to the lines of the logs."""

from __future__ import annotations

from typing import Any


def up(migrator: Any, db: Any) -> None:
    """Adds the column; the same statement on either database, and neither rewrites the table for it."""
    db.execute_sql("ALTER TABLE audit ADD COLUMN request_id TEXT NOT NULL DEFAULT ''")
