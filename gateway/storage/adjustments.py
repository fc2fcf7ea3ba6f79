"""Corrections of what tokens have spent. Each is one short transaction: the token's row, the correction, the audit record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from gateway.clock import Clock, from_text, to_text
from gateway.errors import FailedPrecondition, InvalidArgument, NotFound
from gateway.limits import rolled
from gateway.money import MAX_NANOS, to_units
from gateway.storage import audit, models
from gateway.storage.adoption import adopt, ask_for_scrubbing, has_inbox
from gateway.storage.audit import Actor
from gateway.storage.database import Database
from gateway.storage.operations import Operations
from gateway.storage.periods import spent_since
from gateway.storage.races import again_when_raced

LONGEST_REASON: Final = 500


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One correction, in nano-dollars; below 0 it gave back."""

    id: int
    token_id: int
    amount_nanos: int
    reason: str
    actor: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Booked:
    """A correction, and what its token has spent in all after it."""

    adjustment: Adjustment
    amount_spent_nanos: int


class AdjustmentStore:
    """The corrections of all tokens, deleted ones included. Every method raises DatabaseUnavailable, and NotFound."""

    def __init__(self, db: Database, *, token_key: bytes, clock: Clock) -> None:
        self._db = db
        self._key = token_key
        self._clock = clock
        self._operations = Operations(db, key=token_key)

    @again_when_raced
    def create(self, token_id: int, amount_nanos: int, reason: str, *, actor: Actor, request_id: str = "") -> Booked:
        """Books a correction.

        Raises InvalidArgument for an amount of 0 or a missing reason, FailedPrecondition where the amount spent would be below
        0, AlreadyExists for a request_id that was used for something else.
        """
        reason = checked_reason(reason)
        if not 0 < abs(amount_nanos) <= MAX_NANOS:
            raise InvalidArgument("amount is not 0, and at most 9000000000 either way", metadata={"param": "amount"})
        arguments = {"token_id": token_id, "amount_nanos": amount_nanos, "reason": reason}
        with self._db.write():
            if (known := self._operations.repeated(request_id, "CreateAdjustment", arguments)) is not None:
                return self._known(known)
            if has_inbox(self._db) and adopt(self._db, self._key, to_text(self._clock.now())):
                ask_for_scrubbing(self._db)
            token = lock_token(self._db, token_id)
            now = self._clock.now()
            booked = book(self._db, token, amount_nanos, reason, action="token.adjust", actor=actor, at=now)
            self._operations.note(request_id, "CreateAdjustment", arguments, token_id=booked.adjustment.id, at=now)
            return booked

    def page(self, token_id: int, *, limit: int, before_id: int | None = None) -> list[Adjustment]:
        """A token's corrections below an id, the newest first."""
        where = "token_id = ?" if before_id is None else "token_id = ? AND id < ?"
        parameters = (token_id,) if before_id is None else (token_id, before_id)
        rows = self._db.query(f"{_SELECT} WHERE {where} ORDER BY id DESC LIMIT ?", (*parameters, limit))
        if not rows and not self._db.query("SELECT 1 FROM client_tokens WHERE id = ?", (token_id,)):
            raise NotFound(f"there is no token {token_id}")
        return [_adjustment(row) for row in rows]

    def _known(self, adjustment_id: int) -> Booked:
        [row] = self._db.query(f"{_SELECT} WHERE id = ?", (adjustment_id,))
        found = _adjustment(row)
        [(spent,)] = self._db.query("SELECT total_spent_nanos FROM client_tokens WHERE id = ?", (found.token_id,))
        return Booked(found, int(spent))


@dataclass(frozen=True, slots=True)
class LockedToken:
    """What a correction changes of a token, read and locked."""

    id: int
    total_spent_nanos: int
    budget_period: str
    period_start: str | None
    period_spent_nanos: int


def lock_token(db: Database, token_id: int) -> LockedToken:
    """Reads a token's row in order to correct it, inside `write()`. Raises NotFound."""
    rows = db.query(f"SELECT {_LOCKED} FROM client_tokens WHERE id = ?{db.locking}", (token_id,))
    if not rows:
        raise NotFound(f"there is no token {token_id}")
    return LockedToken(*rows[0])


def book(
    db: Database,
    token: LockedToken,
    amount_nanos: int,
    reason: str,
    *,
    action: str,
    actor: Actor,
    at: datetime,
    details: Mapping[str, Any] | None = None,
) -> Booked:
    """Books a correction of a locked token, inside `write()`, with its audit record.

    details: what else the record tells. Raises FailedPrecondition where the amount spent would be below 0, or too much.
    """
    spent = token.total_spent_nanos + amount_nanos
    if spent < 0:
        raise FailedPrecondition(
            f"token {token.id} has spent {to_units(token.total_spent_nanos):f}: {to_units(-amount_nanos):f} is more than can be"
            " given back"
        )
    if spent > MAX_NANOS:
        raise InvalidArgument("amount is too much: a token spends at most 9000000000", metadata={"param": "amount"})
    # The reset that may be due comes first: a correction belongs to the period that it is booked in.
    start, in_period = rolled(token.budget_period, token.period_start, token.period_spent_nanos, at)
    if start != token.period_start:
        in_period = spent_since(db, token.id, start)
    db.run(
        "UPDATE client_tokens SET total_spent_nanos = ?, period_start = ?, period_spent_nanos = ? WHERE id = ?",
        (spent, start, in_period + amount_nanos, token.id),
    )
    row = models.Adjustment
    created_at = max(to_text(at), start or "")  # a clock that was set back counts on in the period that the token is in
    adjustment_id = int(
        row.insert(
            token_id=token.id, amount_nanos=amount_nanos, reason=reason, actor=actor.name, created_at=created_at
        ).execute(db)
    )
    told = {"adjustment_id": adjustment_id, "amount_nanos": amount_nanos, "reason": reason, "amount_spent_nanos": spent}
    audit.record(
        db,
        actor,
        action,
        f"token:{token.id}",
        at=at,
        before={"amount_spent_nanos": token.total_spent_nanos},
        after=told | dict(details or {}),
    )
    return Booked(Adjustment(adjustment_id, token.id, amount_nanos, reason, actor.name, from_text(created_at)), spent)


def checked_reason(reason: str) -> str:
    """A reason without white space around it. Raises InvalidArgument for none, or one that is too long or cannot be shown."""
    reason = reason.strip()
    if not 1 <= len(reason) <= LONGEST_REASON or not reason.isprintable():
        raise InvalidArgument(
            f"reason is missing, or not 1 to {LONGEST_REASON} printable characters in one line", metadata={"param": "reason"}
        )
    return reason


_LOCKED = "id, total_spent_nanos, budget_period, period_start, period_spent_nanos"
_SELECT = "SELECT id, token_id, amount_nanos, reason, actor, created_at FROM adjustments"


def _adjustment(row: tuple[Any, ...]) -> Adjustment:
    return Adjustment(row[0], row[1], int(row[2]), row[3], row[4], from_text(row[5]))
