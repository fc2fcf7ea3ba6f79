"""PostgreSQL: several processes write at once, on one machine or many; rows that are to be changed are locked in one order."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any, Final

import peewee
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8Dumper

from gateway.errors import DatabaseUnavailable, InvalidArgument
from gateway.storage.database import BUSY_TIMEOUT, Database, faults
from gateway.storage.faults import CommitUnheard, is_lost_connection, translated

# What the URL does not say itself. A server that is cut off is noticed within seconds, not after the kernel's two hours.
_CONNECTION: Final = {
    "connect_timeout": "2",
    "tcp_user_timeout": "3000",
    "keepalives_idle": "2",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "fallback_application_name": "gateway-zero",
    "client_encoding": "UTF8",  # a database made without a locale is SQL_ASCII, and its text would come as bytes
}
# Of a session: how long it waits for a row; how long a process that is stopped in mid-transaction keeps its rows; commits
# that are on disk before they are answered, or stronger where the server says so. Plans of short statements gain nothing
# from compilation.
_SESSION: Final = """
SELECT set_config('lock_timeout', %s, false),
    set_config('idle_in_transaction_session_timeout', '2000', false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), false),
    set_config('jit', 'off', false)
"""
_REWRITE_UP_TO: Final = 8 << 20  # bytes: 30,000 tokens, 0.2 s
# Whoever waits for the whole table keeps all others out meanwhile: so not long, and not soon again.
_REWRITE_WAIT: Final = "20ms"
_REWRITE_PAUSE: Final = 1.0  # seconds
_PREPARED: Final = 400  # statements that a connection keeps prepared: a few shapes, each in several sizes


# What the driver logs of a connection that broke reaches the caller as an error anyway.
logging.getLogger("psycopg").setLevel(logging.CRITICAL)


class PostgresDatabase(Database, peewee.PostgresqlDatabase):
    """A PostgreSQL database: one connection a thread, made anew when it broke.

    url: as libpq reads it, several hosts and `target_session_attrs` included. busy_timeout: seconds that a transaction waits
    for a row that another one holds.
    """

    locking = " FOR NO KEY UPDATE"  # not FOR UPDATE: a new row that refers to a token does not wait for it
    is_shared = True

    def __init__(self, url: str, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        given = _parts(url)
        self._conninfo = make_conninfo(**(_CONNECTION | {key: str(value) for key, value in given.items() if value is not None}))
        self._where = f"{given.get('host', 'localhost')}:{given.get('port', 5432)}/{given.get('dbname', '')}"
        self._lock_timeout = f"{int(busy_timeout * 1000)}ms"
        self._rewrite_at = 0.0
        self._opened: dict[psycopg.Connection[Any], threading.Thread] = {}
        self._opened_lock = threading.Lock()
        super().__init__(self._where, prefer_psycopg3=True)

    def _connect(self) -> psycopg.Connection[Any]:
        try:
            connection: psycopg.Connection[Any] = psycopg.connect(self._conninfo, autocommit=True)
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable(f"the database {self._where} is away: {_line(error)}", retry_after=1.0) from error
        except psycopg.ProgrammingError as error:  # a parameter whose value the driver cannot read
            raise InvalidArgument(f"GATEWAY_DATABASE_URL is wrong: {_line(error)}") from None
        with self._opened_lock:
            for other in [other for other, thread in self._opened.items() if other.closed or not thread.is_alive()]:
                other.close()
                del self._opened[other]
            self._opened[connection] = threading.current_thread()
        # Integers go as one type, so that a statement is not prepared anew for each mixture of small and large numbers.
        connection.adapters.register_dumper(int, Int8Dumper)
        connection.prepared_max = _PREPARED
        try:
            connection.execute(_SESSION, (self._lock_timeout,))
        except psycopg.Error as error:
            connection.close()
            raise translated(error) from error
        return connection

    def close(self) -> bool:
        """Closes the connections of all threads, none of which may be using one."""
        with self._opened_lock:
            for connection in self._opened:
                connection.close()
            self._opened.clear()
        return bool(super().close())

    def execute_sql(self, sql: Any, params: Any = None) -> Any:
        """Runs a statement of peewee's, on a new connection where the old one turns out to be gone."""
        self._driver()
        try:
            return super().execute_sql(sql, params)  # type: ignore[no-untyped-call] # peewee's stub
        except peewee.PeeweeException as error:
            if self.in_transaction() or not is_lost_connection(error):
                raise
        self._driver()
        return super().execute_sql(sql, params)  # type: ignore[no-untyped-call] # peewee's stub

    @contextmanager
    def write(self) -> Iterator[None]:
        """One transaction that writes, READ COMMITTED: what it changes it has locked before, in the order of `locking`."""
        with faults(), ExitStack() as stack:
            self._driver()
            try:
                stack.enter_context(self.atomic())
            except peewee.PeeweeException as error:  # nothing has been done yet: a new connection may do it
                if self.in_transaction() or not is_lost_connection(error):
                    raise
                self._driver()
                stack.enter_context(self.atomic())
            yield
            try:
                stack.close()
            except peewee.PeeweeException as error:
                if is_lost_connection(error):
                    raise CommitUnheard("the connection broke during a commit; ask again", retry_after=1.0) from error
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several reads of one and the same moment, while others write."""
        with self.write():
            self.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield

    def serialize(self, *names: str) -> None:
        """Lets nobody else pass here with one of these names until the transaction ends."""
        keys = sorted({int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True) for name in names})
        if keys:
            self.query("SELECT count(pg_advisory_xact_lock(key)) FROM unnest(?::bigint[]) AS key", (keys,))

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT."""
        try:
            return self._query(sql, parameters)
        except psycopg.Error as error:
            if self.in_transaction() or not is_lost_connection(error):
                raise translated(error) from error
        try:
            return self._query(sql, parameters)
        except psycopg.Error as error:
            raise translated(error) from error

    def _query(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        return self._driver().execute(_for_driver(sql), parameters or None).fetchall()

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Runs one statement that gives no rows."""
        try:
            self._driver().execute(_for_driver(sql), parameters or None)
        except psycopg.Error as error:
            raise translated(error) from error

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Runs one statement for each row of parameters."""
        if not rows:
            return
        try:
            with self._driver().cursor() as cursor:
                cursor.executemany(_for_driver(sql), rows)
        except psycopg.Error as error:
            raise translated(error) from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block of `run` and `run_many` alone, sent without waiting for the answers in between."""
        try:
            with self._driver().pipeline():
                yield
        except psycopg.Error as error:
            raise translated(error) from error

    def _driver(self) -> psycopg.Connection[Any]:
        """This thread's connection, opened if it is not, or if it broke and no transaction hangs on it."""
        if not self.is_closed() and self._connection().closed and not self.in_transaction():
            super().close()
        if self.is_closed():
            with faults():
                self.connect()
        return self._connection()

    def _connection(self) -> psycopg.Connection[Any]:
        connection: psycopg.Connection[Any] = self.connection()  # type: ignore[no-untyped-call] # peewee's stub
        return connection

    def tend(self, *, last: bool = False) -> None:
        """Nothing: the server looks after itself."""

    def scrub(self) -> bool:
        """Rewrites the table of tokens, whose file would keep the plain text of an adopted token until its place is needed.

        A large table is only vacuumed, so that the place is needed soon: rewriting 100,000 tokens takes 0.9 s, in which no
        call is admitted. Somebody who reads the table for long (a dump, a person's open transaction) is not waited for.
        """
        if time.monotonic() < self._rewrite_at:
            return False
        try:
            ((size,),) = self.query("SELECT pg_table_size('client_tokens')")
            self.query("SELECT set_config('lock_timeout', ?, false)", (_REWRITE_WAIT,))
            try:
                self.run("VACUUM (FULL) client_tokens" if size <= _REWRITE_UP_TO else "VACUUM client_tokens")
            finally:
                self.query("SELECT set_config('lock_timeout', ?, false)", (self._lock_timeout,))
        except DatabaseUnavailable:
            self._rewrite_at = time.monotonic() + _REWRITE_PAUSE
            return False
        return True


def _parts(url: str) -> dict[str, Any]:
    """What a URL says, by libpq's names. Raises InvalidArgument; libpq's own words may repeat a password."""
    try:
        given = conninfo_to_dict(url)
    except (psycopg.ProgrammingError, UnicodeDecodeError):  # the second where what stands behind a `%` makes no text
        given = {}
    # A `/` in a password ends the address there, and the rest of the password would be told as a port or a database.
    if not given or re.search(r"[^0-9,]", str(given.get("port", ""))) or "@" in str(given.get("dbname", "")):
        raise InvalidArgument(
            "GATEWAY_DATABASE_URL is not a URL of a PostgreSQL database: a parameter behind the `?` is unknown, or a character"
            " is missing its escape (in a password, `%` is written %25, `@` %40, `/` %2F, `:` %3A, `[` %5B, `?` %3F)"
        )
    return given


@lru_cache(maxsize=512)
def _for_driver(sql: str) -> str:
    """A statement written with `?`, as this driver takes it."""
    return sql.replace("%", "%%").replace("?", "%s") if "?" in sql else sql


def _line(error: Exception) -> str:
    """The first line of what libpq says, which names no password."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
