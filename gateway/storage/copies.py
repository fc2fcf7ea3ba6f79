"""Copies of a SQLite database, made while the services go on, and what a copy says of itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import DatabaseUnavailable, FailedPrecondition
from gateway.storage.database import connect
from gateway.storage.migrate import refuse_newer
from gateway.storage.reconcile import reconcile

_PATIENCE = 10.0  # seconds that a copy waits for a lock


@dataclass(frozen=True, slots=True)
class Copy:
    """What a copy holds."""

    migrations: list[str]
    token_key_fingerprint: str
    """Of the key that its tokens are stored under; empty: it knows none."""
    tokens: int
    requests: int
    spent_nanos: int
    differences: int
    """How many figures of its books do not add up."""


def copy_online(source: Path, target: Path) -> None:
    """Writes the database as it is at one moment to a new file, while others read and write it.

    Raises DatabaseUnavailable where it cannot be read or the copy not be written.
    """
    if not source.is_file():
        raise DatabaseUnavailable(f"there is no database at {source}")
    try:
        with (
            closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE)) as database,
            closing(sqlite3.connect(target)) as copy,
        ):
            # All pages in one step: one read transaction, so one moment, and no beginning anew for each write of the others.
            database.backup(copy, pages=-1)
            copy.execute("PRAGMA journal_mode = DELETE")  # so that the copy is one file
    except sqlite3.Error as error:
        raise DatabaseUnavailable(f"{source} cannot be copied to {target}: {error}") from error


def examine(path: Path) -> Copy:
    """What a copy holds, after proof that it is whole.

    Raises FailedPrecondition where it is damaged or of a newer release.
    """
    with closing(connect(f"sqlite:///{path}", create=False)) as db:
        try:
            found = [str(row[0]) for row in db.query("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            found = [str(error)]
        if found != ["ok"]:
            raise FailedPrecondition(f"the database in it is damaged: {found[0]}")
        refuse_newer(db)
        fingerprint = db.query("SELECT value FROM meta WHERE key = 'token_key_fingerprint'")
        ((tokens, spent),) = db.query("SELECT COUNT(*), COALESCE(SUM(total_spent_nanos), 0) FROM client_tokens")
        ((requests,),) = db.query("SELECT COUNT(*) FROM requests")
        migrations = [str(row[0]) for row in db.query("SELECT name FROM schema_migration ORDER BY name")]
        known = str(fingerprint[0][0]) if fingerprint else ""
        return Copy(migrations, known, int(tokens), int(requests), int(spent), len(reconcile(db)))
