"""Brings a database to the schema of this release. Any number of starters may try at once; it resumes where it was killed."""

from __future__ import annotations

from pathlib import Path

from playhouse.migrations import Runner

from gateway.errors import FailedPrecondition
from gateway.storage.database import Database, faults

_DIRECTORY = Path(__file__).parent / "migrations"
_LOCK = "migrations"


def migrate(db: Database) -> list[str]:
    """Applies what is missing, in one transaction; gives the names of what was applied.

    Raises FailedPrecondition for a database of a newer release, DatabaseUnavailable when another writer holds it for too long.
    """
    runner = Runner(db, str(_DIRECTORY))
    refuse_newer(db, runner)
    if not pending(db, runner):
        return []
    with db.write():
        db.serialize(_LOCK)  # a second starter waits here, then finds nothing to do
        applied: list[str] = runner.up()
        return applied


def pending(db: Database, runner: Runner | None = None) -> list[str]:
    """The migrations that this database still lacks."""
    runner = runner or Runner(db, str(_DIRECTORY))
    with faults():
        return [migration.name for migration in runner.status() if migration.applied is None]


def refuse_newer(db: Database, runner: Runner | None = None) -> None:
    """Raises FailedPrecondition where the database has migrations that this release does not know."""
    runner = runner or Runner(db, str(_DIRECTORY))
    with faults():
        unknown = [migration.name for migration in runner.status() if migration.path is None]
    if unknown:
        raise FailedPrecondition(
            f"the database was made by a newer release (it has {', '.join(unknown)}); start that release, or restore a backup"
        )


def require_current(db: Database) -> None:
    """Raises FailedPrecondition, saying what to do, unless the database has exactly the schema of this release."""
    refuse_newer(db)
    missing = pending(db)
    if missing:
        raise FailedPrecondition(f"the database lacks {', '.join(missing)}; run `gateway migrate`")
