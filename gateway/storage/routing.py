"""Where the proxies send calls, as one of them said last: JSON of a `gateway.auth.v1.Routing`, kept in `meta`."""

from __future__ import annotations

from typing import Final

from gateway.storage.database import Database

_KEY: Final = "routing"


def note_routing(db: Database, text: str) -> None:
    """Keeps it, inside `write()`."""
    db.run("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (_KEY, text))


def noted_routing(db: Database) -> str:
    """What was said last; empty: nothing yet."""
    rows = db.query("SELECT value FROM meta WHERE key = ?", (_KEY,))
    return str(rows[0][0]) if rows else ""
