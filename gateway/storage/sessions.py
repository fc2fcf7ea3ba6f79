"""Administrators' sessions: rows that hold the hash of a secret, so that one is revoked at once and everywhere."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gateway import sessions
from gateway.clock import Clock, from_text, to_text
from gateway.errors import DatabaseUnavailable, NotFound, Unauthenticated
from gateway.storage import audit, models
from gateway.storage.administrators import WRONG, Administrator, serialize
from gateway.storage.audit import Actor
from gateway.storage.database import Database, faults
from gateway.storage.login_attempts import LoginAttempts

TERMINAL = "terminal"
WEB = "web"

_NOTE_USE_EVERY = timedelta(minutes=1)  # so that a page which asks once a second does not write once a second
_KEEP_ENDED = timedelta(days=30)
_END_AT_ONCE = 200
_NO_SESSION = "there is no such session, or it has ended: log in again"


@dataclass(frozen=True, slots=True)
class Session:
    """A session without its secret."""

    id: str
    administrator_id: int
    username: str
    role: str
    kind: str
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime
    client_ip: str
    user_agent: str


class SessionStore:
    """Opens, checks and ends sessions."""

    def __init__(self, db: Database, *, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._attempts = LoginAttempts(db, clock=clock)

    def open(self, administrator: Administrator, *, kind: str, client_ip: str, user_agent: str) -> tuple[str, Session]:
        """A new session and its secret, which is told once, for one who has just proved to be an administrator."""
        secret = sessions.new_session_token()
        session_id, now = str(uuid.uuid4()), self._clock.now()
        row = models.Session
        with self._db.write():
            serialize(self._db, administrator.username)
            owner = models.Administrator
            if (
                not owner.select()
                .where(owner.id == administrator.id, owner.password_hash == administrator.password_hash)
                .exists(self._db)
            ):
                raise Unauthenticated(WRONG)  # the password was changed while it was being verified
            self._attempts.succeed(administrator.attempt)
            row.delete().where(row.expires_at < to_text(now - _KEEP_ENDED)).execute(self._db)
            row.insert(
                id=session_id,
                administrator_id=administrator.id,
                token_hash=sessions.hash_session_token(secret).hex(),
                kind=kind,
                role=administrator.role,
                created_at=to_text(now),
                last_used_at=to_text(now),
                expires_at=to_text(now + sessions.ABSOLUTE),
                client_ip=client_ip,
                user_agent=user_agent[:200],
            ).execute(self._db)
            audit.record(
                self._db,
                Actor(f"admin:{administrator.username}", client_ip),
                "session.login",
                f"session:{session_id}",
                at=now,
                after={"kind": kind, "role": administrator.role},
            )
            found = self._find(row.id == session_id)
        return secret, _to_session(found)

    def check(self, secret: str) -> Session:
        """The live session of a secret, whose use is noted. Raises Unauthenticated."""
        if not sessions.is_session_token(secret):
            raise Unauthenticated(_NO_SESSION)
        row, now = models.Session, self._clock.now()
        with faults():
            found = self._find(row.token_hash == sessions.hash_session_token(secret).hex())
        if found is None or not _is_live(found, now):
            raise Unauthenticated(_NO_SESSION)
        session = _to_session(found)
        if now - session.last_used_at >= _NOTE_USE_EVERY:
            self._note_use(session.id, now)
        return session

    def page(self, administrator_id: int, *, limit: int, before: tuple[str, str] | None = None) -> list[Session]:
        """The administrator's live sessions, the newest first. before: created_at as text and id of the last one seen."""
        row, now = models.Session, self._clock.now()
        query = (
            self._select()
            .where(
                row.administrator_id == administrator_id,
                row.revoked_at.is_null(),
                row.expires_at > to_text(now),
                row.last_used_at > to_text(now - sessions.IDLE),
            )
            .order_by(row.created_at.desc(), row.id.desc())
            .limit(limit)
        )
        if before is not None:
            created_at, session_id = before
            query = query.where((row.created_at < created_at) | ((row.created_at == created_at) & (row.id < session_id)))
        with faults():
            return [_to_session(found) for found in query.execute(self._db)]

    def revoke(self, administrator_id: int, session_id: str, *, actor: Actor, action: str = "session.revoke") -> None:
        """Ends a session of the administrator. Raises NotFound; harmless to repeat."""
        row, now = models.Session, self._clock.now()
        with self._db.write():
            found = self._find((row.id == session_id) & (row.administrator_id == administrator_id))
            if found is None:
                raise NotFound("there is no such session")
            if found.revoked_at is None:
                row.update(revoked_at=to_text(now)).where(row.id == session_id).execute(self._db)
                audit.record(self._db, actor, action, f"session:{session_id}", at=now)

    def end_over(self) -> int:
        """Writes the end into the rows of sessions that are over, so that they stay so whatever the clock does later.

        Over are those that expired, that were idle for too long, and that were opened in the future by a clock that was wrong.
        Gives how many there were. Raises DatabaseUnavailable.
        """
        row, now = models.Session, self._clock.now()
        over = row.revoked_at.is_null() & (
            (row.expires_at <= to_text(now))
            | (row.last_used_at <= to_text(now - sessions.IDLE))
            | (row.created_at > to_text(now + sessions.AHEAD))
        )
        with faults():
            found = [one.id for one in row.select(row.id).where(over).limit(_END_AT_ONCE).execute(self._db)]
        if found:
            with self._db.write():
                row.update(revoked_at=to_text(now)).where(row.id.in_(found), row.revoked_at.is_null()).execute(self._db)
        return len(found)

    def _note_use(self, session_id: str, now: datetime) -> None:
        row = models.Session
        try:
            with self._db.write():
                row.update(last_used_at=to_text(now)).where(row.id == session_id).execute(self._db)
        except DatabaseUnavailable:
            pass  # the next call notes it; a busy database must not end a session

    def _select(self) -> Any:
        return models.Session.select(models.Session, models.Administrator.username).join(
            models.Administrator, on=(models.Administrator.id == models.Session.administrator_id), attr="administrator"
        )

    def _find(self, condition: Any) -> Any:
        return next(iter(self._select().where(condition).execute(self._db)), None)


def _is_live(row: Any, now: datetime) -> bool:
    return row.revoked_at is None and sessions.is_live(
        created_at=from_text(row.created_at), last_used_at=from_text(row.last_used_at), now=now
    )


def _to_session(row: Any) -> Session:
    return Session(
        id=row.id,
        administrator_id=row.administrator_id,
        username=row.administrator.username,
        role=row.role,
        kind=row.kind,
        created_at=from_text(row.created_at),
        expires_at=from_text(row.expires_at),
        last_used_at=from_text(row.last_used_at),
        client_ip=row.client_ip,
        user_agent=row.user_agent,
    )
