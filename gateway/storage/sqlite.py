"""SQLite: one file, one writer at a time, in one process or several on one machine."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import peewee

from gateway.errors import DatabaseUnavailable
from gateway.storage.database import BUSY_TIMEOUT, Database, faults
from gateway.storage.faults import SQLITE_LOCKED, sqlite_code, translated

_ASK_AGAIN_MS = 4
_CHECKPOINT_BYTES = 4 << 20  # the write-ahead log is moved into the database when it is larger than this
# Its file keeps its length when it has been moved and is written anew from its beginning, so that the length alone would have
# it moved after every batch from then on, with two syncs each.
_CHECKPOINT_PAUSE = 1.0  # seconds


class SqliteDatabase(Database, peewee.SqliteDatabase):
    """A SQLite file in WAL mode: writers take turns, readers never wait.

    `synchronous=FULL`: a commit is on disk before it is answered. `secure_delete`: what is deleted or overwritten is zeroed.
    Checkpoints are left to one thread (`tend`, `scrub`): SQLite before 3.51.3 can corrupt a WAL when two connections race
    there.
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
        self._wal = Path(f"{path}-wal")
        self._busy_timeout = busy_timeout
        self._checkpoint_at = 0.0  # in monotonic seconds, by the one thread that tends

    def set_cache(self, kibibytes: int) -> None:
        """How much of the file each thread keeps in memory, this one and those to come; for a process with many threads."""
        with faults():
            self.pragma("cache_size", -kibibytes, permanent=True)

    @contextmanager
    def write(self) -> Iterator[None]:
        """One transaction that writes: takes the write lock at once, is on disk when the block ends."""
        with faults(), ExitStack() as stack:
            if self._busy_timeout > BUSY_TIMEOUT and not self.in_transaction():
                self._begin_patiently(stack)
            else:
                stack.enter_context(self._transaction())
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several reads of one and the same moment, while others write."""
        with faults(), self.atomic():
            yield

    def serialize(self, *names: str) -> None:
        """Nothing: who writes is alone anyway."""

    def together(self) -> AbstractContextManager[None]:
        """Nothing: there is no way to the server that could be saved."""
        return nullcontext()

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
                    if sqlite_code(error) not in SQLITE_LOCKED or time.monotonic() >= ends:
                        raise
                else:
                    return
        finally:
            self.run(f"PRAGMA busy_timeout = {int(self._busy_timeout * 1000)}")

    # These three go to the driver directly: a batch of the ledger runs a dozen statements, and peewee's own path costs it a
    # third of its time.

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""
        try:
            rows: list[tuple[Any, ...]] = self._driver().execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise translated(error) from error
        return rows

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Runs one statement that gives no rows."""
        try:
            self._driver().execute(sql, parameters)
        except sqlite3.Error as error:
            raise translated(error) from error

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Runs one statement for each row of parameters."""
        if not rows:
            return
        try:
            self._driver().executemany(sql, rows)
        except sqlite3.Error as error:
            raise translated(error) from error

    def _driver(self) -> sqlite3.Connection:
        """This thread's connection, opened if it is not."""
        if self.is_closed():
            with faults():
                self.connect()
        connection: sqlite3.Connection = self.connection()  # type: ignore[no-untyped-call] # peewee's stub
        return connection

    def tend(self, *, last: bool = False) -> None:
        """Moves the write-ahead log into the database file where it has grown, and at the end."""
        try:
            if last:
                self._checkpoint("TRUNCATE")
            elif self._wal.stat().st_size > _CHECKPOINT_BYTES and time.monotonic() >= self._checkpoint_at:
                self._checkpoint("PASSIVE")
                self._checkpoint_at = time.monotonic() + _CHECKPOINT_PAUSE
        except (OSError, DatabaseUnavailable):
            return  # the next batch tries again

    def scrub(self) -> bool:
        """Empties the write-ahead log, unless a reader is in the way: then the plain text of a token may still be in it."""
        try:
            return self._checkpoint("TRUNCATE")
        except DatabaseUnavailable:
            return False

    def _checkpoint(self, kind: str) -> bool:
        # Truncating waits for readers, and everybody who wants to write waits for it: so it does not wait long.
        self.run(f"PRAGMA busy_timeout = {_ASK_AGAIN_MS}")
        try:
            rows = self.query(f"PRAGMA wal_checkpoint({kind})")
        finally:
            self.run(f"PRAGMA busy_timeout = {int(self._busy_timeout * 1000)}")
        busy, in_log, moved = rows[0]
        return not busy and bool(in_log == moved)
