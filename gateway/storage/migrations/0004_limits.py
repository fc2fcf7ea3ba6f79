"""What an open call counts with against its token's limit of tokens a minute."""

from __future__ import annotations

from typing import Any


def up(migrator: Any, db: Any) -> None:
    """Adds the column; the same statement on either database, and it rewrites no row."""
    db.execute_sql("ALTER TABLE requests ADD COLUMN expected_tokens BIGINT NOT NULL DEFAULT 0")
