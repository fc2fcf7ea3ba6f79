"""What `gateway check` finds out about the database, SQLite or PostgreSQL."""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Iterator
from typing import Final

from clients.cli.inspection import FAULT, OK, WARNING, Finding, sqlite_file
from gateway.errors import GatewayError
from gateway.process import token_key
from gateway.process.settings import Settings
from gateway.storage.database import Database, connect
from gateway.storage.installation import claim_token_key
from gateway.storage.migrate import pending, refuse_newer

SOUND_SQLITE: Final = (3, 51, 3)  # before it, two connections that checkpoint at once can corrupt a WAL
_OLDEST_POSTGRES: Final = 14  # the oldest that the tests' statements are known to run on and that is still kept up
_CONNECTIONS: Final = 70  # what one auth and one admin open at the most, with room for an operator
_LOOKS: Final = 30
_SLOW_LOOK_MS: Final = 5.0  # an admission takes about eight looks, and a caller waits a second in all

# What a server may be told not to do for speed, and what that costs.
_CARELESS: Final = {
    "fsync": "a crash of the server's machine can destroy the database",
    "full_page_writes": "a crash in the middle of a write can destroy pages of the database",
}


def database(settings: Settings) -> Iterator[Finding]:
    """Whether the database can be reached, keeps what it is told, has this release's schema, and belongs to the token key."""
    file = sqlite_file(settings)
    if file is not None:
        yield _sqlite_version()
        if not file.is_file():
            yield Finding(FAULT, "database", f"there is no database at {file}: run `gateway init`")
            return
    try:
        db = connect(settings.database_url)
    except GatewayError as fault:
        yield Finding(FAULT, "database", fault.message)
        return
    try:
        if file is None:
            yield from _server(db)
        yield from _contents(db, settings, "the server's" if file is None else str(file))
    except GatewayError as fault:
        yield Finding(FAULT, "database", fault.message)
    finally:
        db.close()


def _sqlite_version() -> Finding:
    if sqlite3.sqlite_version_info < SOUND_SQLITE:
        text = f"{sqlite3.sqlite_version} is older than 3.51.3, where two checkpoints at once can corrupt a WAL"
        return Finding(WARNING, "SQLite", f"{text}: let nothing but the gateway checkpoint its database")
    return Finding(OK, "SQLite", sqlite3.sqlite_version)


def _server(db: Database) -> Iterator[Finding]:
    """What a PostgreSQL server says of itself, and how far away it is."""

    def setting(name: str) -> str:
        ((value,),) = db.query("SELECT current_setting(?)", (name,))
        return str(value)

    number, version = int(setting("server_version_num")) // 10_000, setting("server_version")
    if number < _OLDEST_POSTGRES:
        yield Finding(FAULT, "PostgreSQL", f"{version} is too old: use {_OLDEST_POSTGRES} or newer")
    else:
        yield Finding(OK, "PostgreSQL", version)
    for name, cost in _CARELESS.items():
        if setting(name) == "off":
            yield Finding(WARNING, f"PostgreSQL {name}", f"is off: {cost}; switch it on")
    if (most := int(setting("max_connections"))) < _CONNECTIONS:
        text = f"is {most}: one auth and one admin may open {_CONNECTIONS}, every further auth 40"
        yield Finding(WARNING, "PostgreSQL max_connections", text)
    ((standby,),) = db.query("SELECT pg_is_in_recovery()")
    if standby:
        yield Finding(FAULT, "PostgreSQL", "this server is a standby, which takes no writes: name the primary")
    took = []
    for _ in range(_LOOKS):
        started = time.perf_counter()
        db.query("SELECT 1")
        took.append((time.perf_counter() - started) * 1000)
    median = statistics.median(took)
    advice = ": every admission makes about eight; bring the server nearer" if median > _SLOW_LOOK_MS else ""
    yield Finding(WARNING if advice else OK, "PostgreSQL round trip", f"median {median:.2f} ms of {_LOOKS}{advice}")


def _contents(db: Database, settings: Settings, where: str) -> Iterator[Finding]:
    refuse_newer(db)
    missing = pending(db)
    if missing:
        yield Finding(FAULT, "database", f"it lacks {', '.join(missing)}: run `gateway migrate`")
        return
    yield Finding(OK, "database", f"{where}, schema up to date")
    key = token_key.read(settings.token_key_file)
    if not db.query("SELECT 1 FROM meta WHERE key = 'token_key_fingerprint'"):
        yield Finding(FAULT, "token key", "the database knows no token key yet: run `gateway init`")
        return
    claim_token_key(db, key)
    yield Finding(OK, "token key", "belongs to this database")
