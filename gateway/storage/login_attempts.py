"""How often passwords were tried, counted in the database, so that all processes and both doors count together."""

from __future__ import annotations

import ipaddress
import math
from datetime import timedelta

from gateway import sessions
from gateway.clock import Clock, from_text, to_text
from gateway.errors import Throttled
from gateway.storage import audit, models
from gateway.storage.audit import Actor
from gateway.storage.database import Database, faults

_SKEW = timedelta(minutes=1)  # what lies further ahead was written before the clock was set back


class LoginAttempts:
    """The tries at each name. An unknown name is counted as a known one is."""

    def __init__(self, db: Database, *, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def begin(self, username: str, *, client_ip: str) -> int:
        """Takes one of the name's tries and gives its id; it counts as failed until `succeed`.

        Raises Throttled with `retry_after` while the name has none, and where this address has tried too many other names in
        the last minute. The first refusal of a name after a try is audited, further ones are not: they cost no write.
        """
        with faults():
            if (wait := self._wait(username)) > 0:
                self._refuse(username, wait, client_ip)
            place = _place(client_ip)
            if (wait := self._wait_of(place, username)) > 0:
                raise _throttled(wait)
        with self._db.write():  # and again, as others may have come meanwhile
            self._db.serialize(f"login:{username}", *([f"login:{place}"] if place else []))
            wait = max(self._wait(username), self._wait_of(place, username))
            if wait <= 0:
                now, row = self._clock.now(), models.LoginAttempt
                outdated = (row.at < to_text(now - sessions.FORGET_AFTER)) | (row.at > to_text(now + _SKEW))
                row.delete().where(outdated).execute(self._db)
                if place:
                    row.insert(username=f"{place} {username}", at=to_text(now), succeeded=1).execute(self._db)
                return int(row.insert(username=username, at=to_text(now)).execute(self._db))
        raise _throttled(wait)

    def succeed(self, attempt: int) -> None:
        """Inside a `write()`: the try was a right one, so the failures before it are forgotten."""
        row = models.LoginAttempt
        row.update(succeeded=1).where(row.id == attempt).execute(self._db)

    def forget(self, username: str) -> None:
        """Inside a `write()`: the name may be tried at once, as its password was set anew."""
        row = models.LoginAttempt
        row.delete().where(row.username == username).execute(self._db)

    def _wait(self, username: str) -> float:
        now, row = self._clock.now(), models.LoginAttempt
        since = (row.at >= to_text(now - sessions.FORGET_AFTER)) & (row.at <= to_text(now + _SKEW))
        rows = list(row.select().where(row.username == username, since).order_by(row.id).execute(self._db))
        failures = 0
        for found in rows:
            failures = 0 if found.succeeded else failures + 1
        tries = sessions.Tries([from_text(found.at) for found in rows], failures)
        return sessions.wait_before_try(tries, now)

    def _wait_of(self, place: str, username: str) -> float:
        """Seconds until this address may try one more name; 0: now, or it has tried this one already."""
        if not place:
            return 0.0
        now, row = self._clock.now(), models.LoginAttempt
        since = (row.at >= to_text(now - sessions.MINUTE)) & (row.at <= to_text(now + _SKEW))
        # A name has no blank, and `!` follows the blank: so these are the names that were tried from this place.
        tried = row.select(row.username).where(row.username >= f"{place} ", row.username < f"{place}!", since).distinct()
        names = {found.username for found in tried.execute(self._db)}
        if f"{place} {username}" in names or len(names) < sessions.NAMES_A_MINUTE:
            return 0.0
        return sessions.MINUTE.total_seconds()

    def _refuse(self, username: str, wait: float, client_ip: str) -> None:
        row = models.LoginAttempt
        last = next(iter(row.select().where(row.username == username).order_by(row.id.desc()).limit(1).execute(self._db)), None)
        if last is not None and not last.refused:
            with self._db.write():
                row.update(refused=1).where(row.id == last.id).execute(self._db)
                owner = models.Administrator
                name = username if owner.select().where(owner.username == username).exists(self._db) else audit.UNKNOWN_NAME
                actor, now = Actor(f"login:{name}", client_ip), self._clock.now()
                audit.record(self._db, actor, "session.login_throttled", f"administrator:{name}", at=now)
        raise _throttled(wait)


def _place(client_ip: str) -> str:
    """What one caller's addresses have in common, as a key of the table; empty where none is known.

    Of an IPv6 address that is its network of 64 bits, which is what a customer gets.
    """
    try:
        address = ipaddress.ip_address(client_ip)
    except ValueError:
        return ""
    if address.version == 6:
        address = ipaddress.ip_network((address, 64), strict=False).network_address
    return f"@{address}"


def _throttled(wait: float) -> Throttled:
    seconds = math.ceil(wait)
    return Throttled(f"too many tries: wait {seconds} s, then try again", retry_after=float(seconds))
