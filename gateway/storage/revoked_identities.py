"""Revoked identities: of each name, up to which moment its certificates were issued that are no longer valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gateway.clock import Clock, from_text, to_text
from gateway.errors import DatabaseUnavailable, InvalidArgument
from gateway.storage import audit
from gateway.storage.audit import Actor
from gateway.storage.database import Database

READ_EVERY: Final = 0.5
"""Seconds between two looks of each auth and admin at the list."""
IN_FORCE_AFTER: Final = 2 * READ_EVERY
"""Seconds after which every auth and admin that reaches the database refuses what was revoked."""

_AHEAD: Final = timedelta(hours=1)  # more than clocks that are looked after differ

_TABLE: Final = "revoked_identities"
_SELECT: Final = "SELECT name, issued_until, revoked_at, actor FROM revoked_identities"


@dataclass(frozen=True, slots=True)
class RevokedIdentity:
    """One name."""

    name: str
    issued_until: datetime
    """Certificates that were issued up to this moment are refused."""
    revoked_at: datetime
    actor: str


class RevokedIdentityStore:
    """Revokes and lists. Every method raises DatabaseUnavailable."""

    def __init__(self, db: Database, *, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def revoke(self, name: str, issued_until: datetime | None, *, actor: Actor) -> RevokedIdentity:
        """Revokes the certificates of a name that were issued up to a moment; None: up to now.

        What was revoked stays so: an earlier moment than before changes nothing. Raises InvalidArgument for a moment more than
        an hour ahead, which would refuse certificates that nobody has issued yet.
        """
        now = self._clock.now()
        until = (issued_until or now).replace(microsecond=0)
        if until > now + _AHEAD:
            raise InvalidArgument(
                f"issued_until is more than an hour ahead of admin's clock ({to_text(now)}): set the clocks right",
                metadata={"param": "issued_until"},
            )
        with self._db.write():
            self._db.serialize(_TABLE)
            before = _find(self._db, name)
            if before is not None and before.issued_until >= until:
                return before
            row = (name, to_text(until), to_text(now), actor.name)
            self._db.run(
                "INSERT INTO revoked_identities (name, issued_until, revoked_at, actor) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET issued_until = excluded.issued_until, revoked_at = excluded.revoked_at,"
                " actor = excluded.actor",
                row,
            )
            audit.record(
                self._db,
                actor,
                "identity.revoke",
                f"identity:{name}",
                at=now,
                before={"issued_until": to_text(before.issued_until)} if before is not None else None,
                after={"issued_until": to_text(until)},
            )
        return _read(row)

    def all(self) -> list[RevokedIdentity]:
        """Every name of which certificates are revoked, in alphabetical order."""
        return [_read(row) for row in self._db.query(f"{_SELECT} ORDER BY name")]


class RevokedIdentities:
    """The list in memory, for a check at every RPC. It is as old as the last `read`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._until: Mapping[str, datetime] = {}

    def until(self, name: str) -> datetime | None:
        """Up to when certificates of a name were issued that are revoked; None: all are good."""
        return self._until.get(name)

    def read(self) -> None:
        """Reads the list. Raises DatabaseUnavailable, and keeps the old one."""
        self._until = {name: from_text(until) for name, until, *_ in self._db.query(_SELECT)}

    def look(self) -> None:
        """Reads the list where the database answers. Without a database no call is admitted anyway."""
        try:
            self.read()
        except DatabaseUnavailable:
            return


def _find(db: Database, name: str) -> RevokedIdentity | None:
    rows = db.query(f"{_SELECT} WHERE name = ?", (name,))
    return _read(rows[0]) if rows else None


def _read(row: tuple[str, ...]) -> RevokedIdentity:
    name, until, revoked_at, actor = row
    return RevokedIdentity(name, from_text(until), from_text(revoked_at), actor)
