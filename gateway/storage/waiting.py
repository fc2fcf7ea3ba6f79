"""Waiting for the database: services start in any order, also before `gateway init` has made it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

from gateway.errors import DatabaseUnavailable, FailedPrecondition
from gateway.storage.database import BUSY_TIMEOUT, Database, connect, refuse_read_only
from gateway.storage.faults import DatabaseDamaged
from gateway.storage.migrate import pending, refuse_newer

T = TypeVar("T")

_POLL: Final = 0.5
_TELL_EVERY: Final = 30.0


def for_database(
    url: str,
    *,
    busy_timeout: float = BUSY_TIMEOUT,
    patience: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Database:
    """The database, as soon as it is there with the schema of this release.

    busy_timeout: seconds that a writer of it waits for another one. patience: seconds until it gives up; None: never.
    tell: is given what it waits for, when that changes and every half minute.
    Raises InvalidArgument for a URL that names no database, FailedPrecondition for a newer or damaged one and for one on a
    disk that is mounted read-only, at once; when patience ends, whatever is still in the way.
    """
    gives_up = None if patience is None else time.monotonic() + patience
    told, tell_again = "", 0.0
    while True:
        try:
            return _open(url, busy_timeout)
        except DatabaseDamaged as error:
            raise FailedPrecondition(f"{_place(url)}: {error}") from error
        except (DatabaseUnavailable, _NotYetError) as error:
            if gives_up is not None and time.monotonic() >= gives_up:
                raise FailedPrecondition(f"{error}; run `gateway init` or `gateway migrate`") from error
            if str(error) != told or time.monotonic() >= tell_again:
                told, tell_again = str(error), time.monotonic() + _TELL_EVERY
                tell(told)
        time.sleep(_POLL)


def while_away(step: Callable[[], T], *, tell: Callable[[str], None] = lambda _: None) -> T:
    """What a step of a service's start gives, made again as long as the database is away or held.

    tell: as in `for_database`. Raises whatever else the step raises.
    """
    told = ""
    while True:
        try:
            return step()
        except DatabaseUnavailable as error:
            if str(error) != told:
                told = str(error)
                tell(told)
        time.sleep(_POLL)


def _place(url: str) -> str:
    """What a URL names, without a password."""
    parts = urlsplit(url)
    return unquote(parts.path[1:]) if parts.scheme == "sqlite" else f"{parts.hostname}:{parts.port or 5432}{parts.path}"


class _NotYetError(Exception):
    """The database lacks migrations that somebody else is about to apply."""


def _open(url: str, busy_timeout: float) -> Database:
    refuse_read_only(url)
    db = connect(url, busy_timeout=busy_timeout, create=False)
    try:
        _require_schema(db)
    except BaseException:
        db.close()
        raise
    return db


def _require_schema(db: Database) -> None:
    refuse_newer(db)
    if missing := pending(db):
        raise _NotYetError(f"the database lacks {', '.join(missing)}")
