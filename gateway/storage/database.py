"""The database: how it is opened, what a write is, and what its faults mean to the rest of the suite."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import peewee

from gateway.errors import DatabaseUnavailable, InvalidArgument

BUSY_TIMEOUT = 0.25  # seconds; a caller of auth waits one second in all, so a locked database must be told soon

# SQLite's primary result codes for "not now" and "not on this disk", in contrast to faults of our own statements.
_AWAY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_ASK_AGAIN_MS = 4


class Database(peewee.SqliteDatabase):
    """A SQLite file in WAL mode: one connection a thread, kept open; writers take turns, readers never wait.

    `synchronous=FULL`: a commit is on disk before it is answered. `secure_delete`: what is deleted or overwritten is zeroed.
    Checkpoints are left to one thread (`checkpoint`): SQLite before 3.51.3 can corrupt a WAL when two connections race there.
    """

    def __init__(self, path: Path, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        super().__init__(
            str(path),
            timeout=busy_timeout,
            pragmas={
                "journal_mode": "wal",
                "synchronous": "full",
                "secure_delete": "on",
                "foreign_keys": "on",
                "wal_autocheckpoint": 0,
                "cache_size": -16_000,
                "temp_store": "memory",
            },
        )
        self.path = path
        self._busy_timeout = busy_timeout

    def set_cache(self, kibibytes: int) -> None:
        """How much of the file each thread keeps in memory, this one and those to come; for a process with many threads."""
        with faults():
            self.pragma("cache_size", -kibibytes, permanent=True)

    @contextmanager
    def write(self) -> Iterator[None]:
        """One transaction that writes: takes the write lock at once, is on disk when the block ends. Keep it under 50 ms.

        Raises DatabaseUnavailable when the database is locked, full or away; then nothing was changed.
        """
        with faults(), ExitStack() as stack:
            if self._busy_timeout > BUSY_TIMEOUT and not self.in_transaction():
                self._begin_patiently(stack)
            else:
                stack.enter_context(self._transaction())
            yield

    def _transaction(self) -> Any:
        # IMMEDIATE: a deferred transaction that reads and then writes fails at once with "locked", whatever the timeout.
        return self.atomic("IMMEDIATE")

    def _begin_patiently(self, stack: ExitStack) -> None:
        """Begins a transaction beside a writer that takes the lock again as soon as it has given it back.

        SQLite itself asks for the lock ever more rarely, in the end ten times a second, and starves: beside one busy writer
        half of the writes took 130 ms and one in 25 failed after 1.5 s; asking every few milliseconds, the slowest took 150.
        """
        ends = time.monotonic() + self._busy_timeout
        self.run(f"PRAGMA busy_timeout = {_ASK_AGAIN_MS}")
        try:
            while True:
                try:
                    stack.enter_context(self._transaction())
                except peewee.OperationalError as error:
                    if _primary_code(error) not in _LOCKED or time.monotonic() >= ends:
                        raise
                else:
                    return
        finally:
            self.run(f"PRAGMA busy_timeout = {int(self._busy_timeout * 1000)}")

    # These three go to the driver directly: a batch of the ledger runs a dozen statements, and peewee's own path costs it a
    # third of its time.

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT written with `?`. Raises DatabaseUnavailable."""
        try:
            rows: list[tuple[Any, ...]] = self._driver().execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _translated(error) from error
        return rows

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Runs one statement that gives no rows, inside `write()`. Raises DatabaseUnavailable."""
        try:
            self._driver().execute(sql, parameters)
        except sqlite3.Error as error:
            raise _translated(error) from error

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Runs one statement for each row of parameters, inside `write()`. Raises DatabaseUnavailable."""
        if not rows:
            return
        try:
            self._driver().executemany(sql, rows)
        except sqlite3.Error as error:
            raise _translated(error) from error

    def _driver(self) -> sqlite3.Connection:
        """This thread's connection, opened if it is not."""
        if self.is_closed():
            with faults():
                self.connect()
        connection: sqlite3.Connection = self.connection()  # type: ignore[no-untyped-call] # peewee's stub
        return connection

    def is_reachable(self) -> bool:
        """Whether the database answers. It is only read: a look a second must not lock out who writes by hand."""
        try:
            self.query("SELECT 1 FROM meta LIMIT 1")
        except DatabaseUnavailable:
            return False
        return True

    def checkpoint(self, *, truncate: bool = False) -> bool:
        """Moves the WAL into the database file; with `truncate`, empties the WAL too. For one thread of one process only.

        Gives whether all of it was moved; False when a reader or writer was in the way.
        """
        # Truncating waits for readers, and everybody who wants to write waits for it: so it does not wait long.
        self.run(f"PRAGMA busy_timeout = {_ASK_AGAIN_MS}")
        try:
            rows = self.query(f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'PASSIVE'})")
        finally:
            self.run(f"PRAGMA busy_timeout = {int(self._busy_timeout * 1000)}")
        busy, in_log, moved = rows[0]
        return not busy and in_log == moved


def connect(url: str, *, busy_timeout: float = BUSY_TIMEOUT, create: bool = True) -> Database:
    """The database that a URL names: `sqlite:///data/gateway.db` (relative) or `sqlite:////srv/gateway.db` (absolute).

    busy_timeout: seconds that a writer waits for another one. create: makes an empty database where there is none.
    Raises InvalidArgument for a URL that names none, DatabaseUnavailable where it cannot be opened.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc or len(parts.path) < 2:
        raise InvalidArgument("GATEWAY_DATABASE_URL names a SQLite file, such as sqlite:///data/gateway.db")
    database = Database(Path(unquote(parts.path[1:])), busy_timeout=busy_timeout)
    if not database.path.parent.is_dir():
        raise DatabaseUnavailable(f"there is no folder {database.path.parent} for the database; `gateway init` makes it")
    if not create and not database.path.exists():
        raise DatabaseUnavailable(f"there is no database at {database.path}; `gateway init` makes it")
    with faults():
        database.connect()
    return database


@contextmanager
def faults() -> Iterator[None]:
    """Turns what the driver raises when the database is locked, full or away into DatabaseUnavailable."""
    try:
        yield
    except (peewee.OperationalError, sqlite3.OperationalError) as error:
        raise _translated(error) from error


def _translated(error: Exception) -> Exception:
    """DatabaseUnavailable for a database that is locked, full or away; else the error itself."""
    # A full disk makes SQLite roll back by itself, and peewee's own rollback after it fails: what counts is what came before.
    before: BaseException | None = error
    while before is not None and "no transaction is active" in str(before):
        before = before.__cause__ or before.__context__
    if isinstance(before, DatabaseUnavailable) or (isinstance(before, Exception) and _primary_code(before) in _AWAY):
        return DatabaseUnavailable("the database is busy or away; nothing was changed, try again", retry_after=1.0)
    return error


def _primary_code(error: Exception) -> int | None:
    """SQLite's own code of an error, without its details."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)  # peewee keeps the driver's error in `orig`
    return code & 0xFF if isinstance(code, int) else None
