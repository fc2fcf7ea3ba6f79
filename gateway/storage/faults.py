"""What the drivers' errors mean: not now, not on this disk, not this value, or a fault of ours."""

from __future__ import annotations

import sqlite3
from typing import Final

import peewee

from gateway.errors import AuthUnavailable, DatabaseUnavailable, InvalidArgument

# peewee's errors and the SQLite driver's; the PostgreSQL driver's reach only `postgres.py`, or come wrapped by peewee.
DRIVER_ERRORS: Final = (peewee.DatabaseError, peewee.InterfaceError, sqlite3.DatabaseError)

# SQLite's primary result codes for "not now" and "not on this disk", in contrast to faults of our own statements.
_SQLITE_AWAY: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
_SQLITE_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# SQLite has no code of its own for these. What follows is a name.
_SQLITE_MISSING: Final = ("no such table: ", "no such column: ")
SQLITE_LOCKED: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

# PostgreSQL's error codes (its manual, appendix A). lock_not_available, deadlock_detected, serialization_failure:
_ROW_LOCKED: Final = {"55P03", "40P01", "40001"}
# Connection, resources, limits, state of the server, intervention, system:
_AWAY_CLASSES: Final = {"08", "53", "54", "55", "57", "58"}
# A read-only server (a standby that has not been promoted), a transaction that was idle for too long,
# and a right that the role of the URL lacks: without it the database is of no use until somebody grants it.
_NO_RIGHT: Final = "42501"
_AWAY: Final = {"25006", "25P03", "25P04", _NO_RIGHT}
# undefined_table, undefined_column, invalid_schema_name:
_MISSING: Final = {"42P01", "42703", "3F000"}
# data_corrupted, index_corrupted:
_DAMAGED: Final = {"XX001", "XX002"}
# A value that no column can hold: out of range, or with a zero byte in it.
_VALUE_CLASS: Final = "22"

_BUSY: Final = "the database is busy or away; nothing was changed, try again"
_INCOMPLETE: Final = "the database lacks a table or a column of this release; run `gateway migrate`, or restore a backup"
_BROKEN: Final = "the database is damaged, or no database; restore a backup"
_DENIED: Final = "the database denies the role of GATEWAY_DATABASE_URL a right that it needs"


class RowLocked(DatabaseUnavailable):
    """Another transaction holds a row that this one needs: a fault of these items, not of the database."""


class SchemaIncomplete(DatabaseUnavailable):
    """The database lacks a table or a column of this release, as while it is being restored."""


class DatabaseDamaged(DatabaseUnavailable):
    """The file is no database, or only a part of one."""


class CommitUnheard(DatabaseUnavailable):
    """The connection broke during a commit, or it takes too long: it may be done, or be done yet, or not at all."""

    # To whoever asked auth it is as if auth had not answered: what may have been admitted is taken back.
    reason = AuthUnavailable.reason


def translated(error: Exception) -> Exception:
    """DatabaseUnavailable for a database that is locked, full or away, InvalidArgument for a value; else the error itself."""
    # A full disk makes SQLite roll back by itself, and peewee's own rollback after it fails: what counts is what came before.
    before: BaseException | None = error
    while before is not None and "no transaction is active" in str(before):
        before = before.__cause__ or before.__context__
    if isinstance(before, DatabaseUnavailable):
        return before
    if not isinstance(before, Exception):
        return error
    if sqlite_code(before) in _SQLITE_AWAY:
        return DatabaseUnavailable(_BUSY, retry_after=1.0)
    if sqlite_code(before) in _SQLITE_DAMAGED:
        return DatabaseDamaged(_BROKEN, retry_after=1.0)
    if sqlite_code(before) == sqlite3.SQLITE_ERROR and _says_missing(str(_original(before))):
        return SchemaIncomplete(_INCOMPLETE, retry_after=1.0)
    return _of_postgres(before) or error


def sqlite_code(error: Exception) -> int | None:
    """SQLite's own primary code of an error, without its details."""
    code = getattr(_original(error), "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def is_lost_connection(error: Exception) -> bool:
    """Whether PostgreSQL's connection is gone, so that a statement that was not begun may be tried on a new one."""
    original = _original(error)
    state = getattr(original, "sqlstate", "")
    return state is None or state[:2] in {"08", "57"} or state in {"25P03", "25P04"}


def _of_postgres(error: Exception) -> Exception | None:
    original = _original(error)
    if not hasattr(original, "sqlstate"):
        return None
    state: str | None = original.sqlstate
    if state in _ROW_LOCKED:
        return RowLocked(_BUSY, retry_after=1.0)
    if state is None:  # from libpq: the server was not reached, or the connection broke; or from the driver itself
        if _names(original) & {"OperationalError", "InterfaceError"}:
            return DatabaseUnavailable(_BUSY, retry_after=1.0)
        return _wrong_value() if "DataError" in _names(original) else None
    return _by_state(state)


def _by_state(state: str) -> Exception | None:
    """What an error code of PostgreSQL's means; None: a fault of ours."""
    if state[:2] in _AWAY_CLASSES or state in _AWAY:
        return DatabaseUnavailable(_DENIED if state == _NO_RIGHT else _BUSY, retry_after=1.0)
    if state in _MISSING:
        return SchemaIncomplete(_INCOMPLETE, retry_after=1.0)
    if state in _DAMAGED:
        return DatabaseDamaged(_BROKEN, retry_after=1.0)
    return _wrong_value() if state[:2] == _VALUE_CLASS else None


def _says_missing(text: str) -> bool:
    return text.startswith(_SQLITE_MISSING) or (text.startswith("table ") and " has no column named " in text)


def _wrong_value() -> InvalidArgument:
    return InvalidArgument("a value is out of range, or has a zero byte in it")


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _original(error: BaseException) -> BaseException:
    return getattr(error, "orig", None) or error  # peewee keeps the driver's error in `orig`
