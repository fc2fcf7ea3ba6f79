"""What a database is to the rest of the suite: a few verbs, the same for SQLite and PostgreSQL, and how one is opened."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import peewee

from gateway.errors import DatabaseUnavailable, FailedPrecondition, InvalidArgument
from gateway.storage import models
from gateway.storage.faults import DRIVER_ERRORS, translated

BUSY_TIMEOUT: Final = 0.25  # seconds; a caller of auth waits one second in all, so a locked database must be told soon


class Database(peewee.Database):
    """A database with the ledger in it: one connection a thread, kept open. Safe to use from many threads.

    Statements are written with `?`. Everything raises DatabaseUnavailable when the database is locked, full or away, and
    InvalidArgument for a value that it cannot hold.
    """

    locking: str = ""
    """What a SELECT ends with that reads rows in order to change them, inside `write()`: always after an ORDER BY, and tokens
    before requests, so that no two transactions wait for each other. Empty where one writer at a time is let in anyway."""

    is_shared: bool = False
    """Whether several processes may write at the same time, each in a transaction of its own."""

    @abstractmethod
    def write(self) -> AbstractContextManager[None]:
        """One transaction that writes: on disk when the block ends. Keep it under 50 ms.

        Raises DatabaseUnavailable when the database is locked, full or away; then nothing was changed. Where the connection
        breaks during the commit itself, everything was changed or nothing: whoever repeats it needs ids that tell.
        """

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[None]:
        """Several reads of one and the same moment, while others write."""

    @abstractmethod
    def serialize(self, *names: str) -> None:
        """Inside `write()`, before any row is locked: lets nobody else pass here with one of these names until it ends."""

    @abstractmethod
    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""

    @abstractmethod
    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Runs one statement that gives no rows, inside `write()`."""

    @abstractmethod
    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Runs one statement for each row of parameters, inside `write()`."""

    @abstractmethod
    def together(self) -> AbstractContextManager[None]:
        """A block of `run` and `run_many` alone, which need not wait for each other's answers."""

    @abstractmethod
    def tend(self, *, last: bool = False) -> None:
        """What the database wants done now and then, between transactions, by the ledger's writer alone.

        last: the writer is about to end.
        """

    @abstractmethod
    def scrub(self) -> bool:
        """Overwrites what deleted or changed rows have left in its files; for the ledger's writer alone.

        Gives False when somebody was in the way: then try again soon.
        """

    def set_cache(self, kibibytes: int) -> None:
        """How much of the file each thread keeps in memory, where it is a matter of threads at all."""

    trouble: str = ""
    """Why the last `is_reachable` was false; empty: it was true."""

    def lock(self, query: Any) -> Any:
        """A SELECT of peewee's that reads rows in order to change them, inside `write()`."""
        return query.for_update("FOR NO KEY UPDATE") if self.is_shared else query

    def is_reachable(self) -> bool:
        """Whether the database answers, with all tables and columns; `trouble` says what is wrong where it does not.

        It is only read: a look a second must not lock out who writes by hand.
        """
        try:
            self.query(_LOOK)
        except DatabaseUnavailable as error:
            self.trouble = error.message
            return False
        self.trouble = ""
        return True


def _whole_schema() -> str:
    """A SELECT that reads no row, and fails where a table or a column is missing."""
    parts = []
    for number, model in enumerate(models.ALL):
        columns = ", ".join(field.column_name for field in model._meta.sorted_fields)
        parts.append(f"(SELECT COUNT(*) FROM (SELECT {columns} FROM {model._meta.table_name} LIMIT 0) AS t{number})")
    return f"SELECT {', '.join(parts)}"


_LOOK: Final = _whole_schema()


def connect(url: str, *, busy_timeout: float = BUSY_TIMEOUT, create: bool = True) -> Database:
    """The database that a URL names.

    url: `sqlite:///data/gateway.db` (relative), `sqlite:////srv/gateway.db` (absolute) or
    `postgresql://user:password@host:5432/database`, with libpq's parameters. busy_timeout: seconds that a writer waits for
    another one. create: makes an empty SQLite file where there is none.
    Raises InvalidArgument for a URL that names none, DatabaseUnavailable where it cannot be opened.
    """
    if url.startswith(("postgresql://", "postgres://")):
        from gateway.storage.postgres import PostgresDatabase  # noqa: PLC0415 - the driver is not for those who use SQLite

        database: Database = PostgresDatabase(url, busy_timeout=busy_timeout)
    elif (parts := urlsplit(url)).scheme == "sqlite" and not parts.netloc and len(parts.path) >= 2:
        from gateway.storage.sqlite import SqliteDatabase  # noqa: PLC0415 - it imports this module

        database = _sqlite(SqliteDatabase, Path(unquote(parts.path[1:])), busy_timeout, create=create)
    else:
        raise InvalidArgument(
            "GATEWAY_DATABASE_URL names a SQLite file, such as sqlite:///data/gateway.db, or a PostgreSQL database,"
            " such as postgresql://gateway:password@localhost:5432/gateway"
        )
    with faults():
        database.connect()
    return database


def refuse_read_only(url: str) -> None:
    """Raises FailedPrecondition where a URL names a SQLite file on a file system that is mounted read-only."""
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        return
    path = Path(unquote(parts.path[1:]))
    with suppress(OSError):  # what is not there yet may come
        if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
            raise FailedPrecondition(f"the database {path} cannot be written to: its file system is mounted read-only")


def _sqlite(make: Any, path: Path, busy_timeout: float, *, create: bool) -> Database:
    if not path.parent.is_dir():
        raise DatabaseUnavailable(f"there is no folder {path.parent} for the database; `gateway init` makes it")
    if not create and not path.exists():
        raise DatabaseUnavailable(f"there is no database at {path}; `gateway init` makes it")
    database: Database = make(path, busy_timeout=busy_timeout)
    return database


@contextmanager
def faults() -> Iterator[None]:
    """Turns what a driver raises when the database is locked, full or away into DatabaseUnavailable."""
    try:
        yield
    except DRIVER_ERRORS as error:
        meant = translated(error)
        if meant is error:
            raise
        raise meant from error
