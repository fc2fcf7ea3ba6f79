"""Administrators and their passwords: the first one, logins, changes of password."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peewee import fn

from gateway import sessions
from gateway.clock import Clock, SystemClock, from_text, to_text
from gateway.errors import InvalidArgument, Unauthenticated
from gateway.storage import audit, models
from gateway.storage.audit import Actor
from gateway.storage.database import Database, faults
from gateway.storage.login_attempts import LoginAttempts
from gateway.storage.passwords import PasswordCheck, hash_password

FIRST = "admin"
WRONG = "the name or the password is wrong"


@dataclass(frozen=True, slots=True)
class Administrator:
    """Somebody who has proved to be an administrator.

    attempt: the try by which it was proved. password_hash: what it was proved against; when that has changed meanwhile, the
    proof is worth nothing.
    """

    id: int
    username: str
    role: str
    attempt: int
    password_hash: str = field(repr=False)


def bootstrap(db: Database, password: str | None, *, clock: Clock | None = None) -> str | None:
    """Makes the first administrator, `admin`, where there is none at all.

    password: an ordinary one; None: a one-time password is made, which opens nothing but a change of password, for 24 hours.
    Gives the one-time password, to be shown once; None when a password was given or an administrator is there already.
    Raises InvalidArgument for a weak password, whether or not it would be used.
    """
    if password is not None and (fault := sessions.password_fault(password, FIRST)) is not None:
        raise InvalidArgument(fault)
    with faults():
        if models.Administrator.select().exists(db):
            return None
    one_time = sessions.generate_password() if password is None else None
    stored = hash_password(one_time or password or "")
    now = (clock or SystemClock()).now()
    with db.write():
        db.serialize("bootstrap")
        if models.Administrator.select().exists(db):  # another starter was faster
            return None
        models.Administrator.insert(
            username=FIRST,
            password_hash=stored,
            role=sessions.ROLE_ADMIN,
            one_time=int(one_time is not None),
            one_time_expires_at=to_text(now + sessions.ONE_TIME_LIFE) if one_time is not None else None,
            created_at=to_text(now),
        ).execute(db)
        audit.record(
            db,
            Actor(audit.OPERATOR),
            "administrator.create",
            f"administrator:{FIRST}",
            at=now,
            after={"username": FIRST, "one_time": one_time is not None},
        )
    return one_time


def withdraw_unused_bootstrap(db: Database) -> None:
    """Takes away the first administrator whose one-time password nobody has used, for `bootstrap` to make one anew."""
    row, session = models.Administrator, models.Session
    used = session.select().where(session.administrator_id == row.id)
    with db.write():
        row.delete().where(row.username == FIRST, row.one_time == 1, ~fn.EXISTS(used)).execute(db)


class AdministratorStore:
    """Proves and changes passwords. Every hashing happens outside of transactions."""

    def __init__(self, db: Database, *, clock: Clock, check: PasswordCheck | None = None) -> None:
        self._db = db
        self._clock = clock
        self._check = check or PasswordCheck()
        self._attempts = LoginAttempts(db, clock=clock)

    def prove(self, username: str, password: str, *, client_ip: str) -> Administrator:
        """The administrator with this name and password.

        Raises Unauthenticated, in the same words and the same time for an unknown name; InvalidArgument for what can be none;
        Throttled after too many tries. A failure is audited.
        """
        if not sessions.is_username(username):
            raise InvalidArgument("username is 1 to 64 letters, digits and . _ @ + -", metadata={"param": "username"})
        if sessions.is_too_long(password):
            raise InvalidArgument("password is at most 1024 bytes", metadata={"param": "password"})
        attempt = self._attempts.begin(username, client_ip=client_ip)
        with faults():
            row = self._row(username)
        if not self._check.matches(password, _usable_hash(row, self._clock)):
            now = self._clock.now()
            with self._db.write():
                name = username if row is not None else audit.UNKNOWN_NAME
                audit.record(
                    self._db, Actor(f"login:{name}", client_ip), "session.login_failed", f"administrator:{name}", at=now
                )
            raise Unauthenticated(WRONG)
        role = sessions.ROLE_PASSWORD_CHANGE if row.one_time else row.role
        return Administrator(row.id, row.username, role, attempt, row.password_hash)

    def change_password(self, username: str, old_password: str, new_password: str, *, session_id: str, client_ip: str) -> None:
        """Sets a new password for one who knows the old one, and ends the administrator's sessions but for the given one.

        A one-time password is gone with it, and the given session may do everything from now on.
        Raises as `prove`, and InvalidArgument for a weak new password.
        """
        _require_strong(new_password, username)
        if old_password == new_password:
            raise InvalidArgument("the new password is the old one: take another", metadata={"param": "new_password"})
        proved = self.prove(username, old_password, client_ip=client_ip)
        stored = hash_password(new_password)
        now, session = self._clock.now(), models.Session
        with self._db.write():
            serialize(self._db, username)
            row = self._row(username)
            if row.password_hash != proved.password_hash:
                raise Unauthenticated(WRONG)
            self._attempts.succeed(proved.attempt)
            self._store(row.id, stored)
            _end_sessions(self._db, row.id, at=to_text(now), but=session_id)
            session.update(role=row.role).where(session.id == session_id).execute(self._db)
            actor = Actor(f"admin:{username}", client_ip)
            audit.record(self._db, actor, "administrator.change_password", f"administrator:{username}", at=now)

    def set_password(self, username: str, new_password: str, *, actor: Actor) -> None:
        """Sets anyone's password, makes who is not there yet, ends all of that one's sessions. Raises InvalidArgument."""
        if not sessions.is_username(username):
            raise InvalidArgument("username is 1 to 64 letters, digits and . _ @ + -", metadata={"param": "username"})
        _require_strong(new_password, username)
        stored = hash_password(new_password)
        now = self._clock.now()
        with self._db.write():
            serialize(self._db, username)
            row = self._row(username)
            if row is None:
                models.Administrator.insert(
                    username=username, password_hash=stored, role=sessions.ROLE_ADMIN, created_at=to_text(now)
                ).execute(self._db)
                action = "administrator.create"
            else:
                self._store(row.id, stored)
                _end_sessions(self._db, row.id, at=to_text(now))
                action = "administrator.set_password"
            self._attempts.forget(username)
            audit.record(self._db, actor, action, f"administrator:{username}", at=now)

    def _row(self, username: str) -> Any:
        row = models.Administrator
        return next(iter(row.select().where(row.username == username).execute(self._db)), None)

    def _store(self, administrator_id: int, stored: str) -> None:
        row = models.Administrator
        row.update(
            password_hash=stored, one_time=0, one_time_expires_at=None, password_changed_at=to_text(self._clock.now())
        ).where(row.id == administrator_id).execute(self._db)


def serialize(db: Database, username: str) -> None:
    """Inside a `write()`, first: nobody else changes this one's password or opens a session for them until it ends."""
    db.serialize(f"administrator:{username}")


def _usable_hash(row: Any, clock: Clock) -> str | None:
    """The hash to compare with; None for an unknown name and for a one-time password that is over."""
    if row is None or (row.one_time and from_text(row.one_time_expires_at) <= clock.now()):
        return None
    return str(row.password_hash)


def _require_strong(password: str, username: str) -> None:
    if (fault := sessions.password_fault(password, username)) is not None:
        raise InvalidArgument(fault, metadata={"param": "new_password"})


def _end_sessions(db: Database, administrator_id: int, *, at: str, but: str = "") -> None:
    row = models.Session
    row.update(revoked_at=at).where(row.administrator_id == administrator_id, row.revoked_at.is_null(), row.id != but).execute(
        db
    )
