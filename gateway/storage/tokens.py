"""Client tokens as administrators change them. Each change is one short transaction with its audit record in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from datetime import UTC, datetime
from typing import Any

import peewee

from gateway import tokens
from gateway.client_tokens import ClientToken, NewToken
from gateway.clock import Clock, from_text, parse_expiry, to_text
from gateway.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, VersionMismatch
from gateway.money import MAX_NANOS
from gateway.patterns import models_of_text
from gateway.storage import audit, models
from gateway.storage.adoption import adopt, ask_for_scrubbing, has_inbox
from gateway.storage.audit import Actor
from gateway.storage.database import Database, faults
from gateway.storage.operations import Operations
from gateway.storage.races import again_when_raced

_UNREADABLE = datetime.min.replace(tzinfo=UTC)  # a hand-written expiry that is no date opens nothing
_UNKNOWN = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Issued:
    """A token with its secret; `secret` None: this was a repeat, and the secret was told before."""

    token: ClientToken
    secret: str | None = dataclass_field(repr=False)


class TokenStore:
    """The tokens that are not deleted. Every method raises DatabaseUnavailable, those with an id NotFound."""

    def __init__(self, db: Database, *, token_key: bytes, clock: Clock) -> None:
        self._db = db
        self._key = token_key
        self._clock = clock
        self._operations = Operations(db, key=token_key)

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def get(self, token_id: int) -> ClientToken:
        """One token."""
        with faults():
            row = self._find(token_id)
        if _has_inbox(row):
            with self._db.write():
                row = self._row(token_id)
        return _to_token(row)

    def page(
        self, *, limit: int, before_id: int | None = None, name_contains: str = "", customer: str = ""
    ) -> list[ClientToken]:
        """The tokens below an id, the newest first. Upper and lower case of ASCII letters are alike in `name_contains`."""
        row = models.ClientToken
        query = row.select().where(row.deleted_at.is_null()).order_by(row.id.desc()).limit(limit)
        if before_id is not None:
            query = query.where(row.id < before_id)
        if customer:
            query = query.where(row.customer == customer)
        if name_contains:
            shown = peewee.fn.COALESCE(row.name, peewee.SQL("'token-' || CAST(id AS TEXT)"))
            query = query.where(shown.contains(name_contains))
        with faults():
            rows = list(query.execute(self._db))
        if any(_has_inbox(found) for found in rows):
            with self._db.write():
                self._adopt()
                rows = list(query.clone().execute(self._db))
        return [_to_token(found) for found in rows]

    def served_models(self) -> dict[str, tuple[str, ...]]:
        """The providers' names, each with the patterns of what it serves."""
        with faults():
            return {row.name: models_of_text(row.models) for row in models.Provider.select().execute(self._db)}

    # -- changing --------------------------------------------------------------------------------------------------------------

    @again_when_raced
    def create(self, new: NewToken, *, actor: Actor, request_id: str = "") -> Issued:
        """Makes a token. Raises InvalidArgument for a chosen secret that may not be one, AlreadyExists for a taken one."""
        if new.secret is not None:
            _check_chosen(new.secret)
        secret = tokens.generate() if new.secret is None else new.secret
        arguments = asdict(new)
        now = self._clock.now()
        with self._db.write():
            if (known := self._operations.repeated(request_id, "CreateToken", arguments)) is not None:
                return Issued(_to_token(self._row(known)), None)
            values = _columns({name: arguments[name] for name in _COLUMNS}) | self._secret_columns(secret)
            token_id = int(models.ClientToken.insert(**values, created_at=to_text(now)).execute(self._db))
            if not new.name:
                row = models.ClientToken
                row.update(name=f"token-{token_id}").where(row.id == token_id).execute(self._db)
            token = _to_token(self._row(token_id))
            self._operations.note(request_id, "CreateToken", arguments, token_id=token_id, at=now)
            audit.record(self._db, actor, "token.create", _subject(token), at=now, after=_told(token))
        return Issued(token, secret)

    def update(self, token_id: int, changes: Mapping[str, Any], *, version: int = 0, actor: Actor) -> ClientToken:
        """Sets fields (those of `client_tokens.CHANGEABLE`, checked). Raises VersionMismatch when `version` is not the token's.

        version: the version that the caller has seen; 0: whatever it is.
        """
        with self._db.write():
            before = _to_token(self._row(token_id))
            if version and version != before.version:
                raise VersionMismatch(f"the token is at version {before.version}: read it again, then change it")
            values = dict(changes)
            if values.get("name") == "":
                values["name"] = f"token-{token_id}"
            return self._set(before, _columns(values), action="token.update", actor=actor)

    def set_enabled(self, token_id: int, enabled: bool | None, *, actor: Actor) -> ClientToken:
        """Switches a token on or off; None: the other way round. Where it is so already nothing is changed."""
        with self._db.write():
            before = _to_token(self._row(token_id))
            wanted = not before.enabled if enabled is None else enabled
            if wanted == before.enabled:
                return before
            action = "token.enable" if wanted else "token.disable"
            return self._set(before, {"enabled": int(wanted)}, action=action, actor=actor)

    @again_when_raced
    def rotate(self, token_id: int, *, actor: Actor, request_id: str = "") -> Issued:
        """Gives a token a new, generated secret; the old one is dead when this returns."""
        arguments = {"id": token_id}
        secret = tokens.generate()
        with self._db.write():
            if self._operations.repeated(request_id, "RotateToken", arguments) is not None:
                return Issued(_to_token(self._row(token_id)), None)
            before = _to_token(self._row(token_id))
            self._operations.note(request_id, "RotateToken", arguments, token_id=token_id, at=self._clock.now())
            dead = {"previous_token_hash": None, "previous_valid_until": None}
            token = self._set(before, self._secret_columns(secret) | dead, action="token.rotate", actor=actor)
        return Issued(token, secret)

    @again_when_raced
    def top_up(self, token_id: int, amount_nanos: int, *, actor: Actor, request_id: str = "") -> ClientToken:
        """Raises a budget. FailedPrecondition for a token without one, InvalidArgument for an amount that is not above 0."""
        if not 0 < amount_nanos <= MAX_NANOS:
            raise InvalidArgument("amount is above 0 and at most 9000000000", metadata={"param": "amount"})
        arguments = {"id": token_id, "amount_nanos": amount_nanos}
        with self._db.write():
            if self._operations.repeated(request_id, "TopUpToken", arguments) is not None:
                return _to_token(self._row(token_id))
            before = _to_token(self._row(token_id))
            if before.max_amount_nanos is None:
                raise FailedPrecondition("the token has no budget to top up: set max_amount first")
            raised = before.max_amount_nanos + amount_nanos
            if raised > MAX_NANOS:
                raise InvalidArgument("amount is too much: a budget is at most 9000000000", metadata={"param": "amount"})
            self._operations.note(request_id, "TopUpToken", arguments, token_id=token_id, at=self._clock.now())
            return self._set(before, {"max_amount_nanos": raised}, action="token.top_up", actor=actor)

    def delete(self, token_id: int, *, actor: Actor) -> None:
        """Deletes a token: its secret opens nothing from now on and is free again, its history stays. Harmless to repeat."""
        row, now = models.ClientToken, self._clock.now()
        with self._db.write():
            query = self._db.lock(row.select().where(row.id == token_id))
            found = next(iter(query.execute(self._db)), None)
            if found is None:
                raise _not_found(token_id)
            if found.deleted_at is not None:
                return
            token = _to_token(self._row(token_id))
            row.update(
                deleted_at=to_text(now),
                enabled=0,
                token_hash=None,
                previous_token_hash=None,
                previous_valid_until=None,
                version=row.version + 1,
            ).where(row.id == token_id).execute(self._db)
            audit.record(self._db, actor, "token.delete", _subject(token), at=now, before=_told(token))

    # -- within a transaction ------------------------------------------------------------------------------------------------

    def _row(self, token_id: int) -> Any:
        """A token's row, locked, and adopted where a person wrote into it."""
        found = self._find(token_id, lock=True)
        if _has_inbox(found):
            self._adopt()
            found = self._find(token_id)
        return found

    def _find(self, token_id: int, *, lock: bool = False) -> Any:
        row = models.ClientToken
        query = row.select().where(row.id == token_id, row.deleted_at.is_null())
        found = next(iter((self._db.lock(query) if lock else query).execute(self._db)), None)
        if found is None:
            raise _not_found(token_id)
        return found

    def _adopt(self) -> None:
        if adopt(self._db, self._key, to_text(self._clock.now())):
            ask_for_scrubbing(self._db)

    def _set(self, before: ClientToken, columns: Mapping[str, Any], *, action: str, actor: Actor) -> ClientToken:
        row = models.ClientToken
        row.update(**columns, version=row.version + 1).where(row.id == before.id).execute(self._db)
        after = _to_token(self._row(before.id))
        old, new = _told(before), _told(after)
        changed = [name for name in new if old[name] != new[name]]
        audit.record(
            self._db,
            actor,
            action,
            _subject(after),
            at=self._clock.now(),
            before={name: old[name] for name in changed},
            after={name: new[name] for name in changed},
        )
        return after

    def _secret_columns(self, secret: str) -> dict[str, Any]:
        if has_inbox(self._db):  # one of those may have this very secret
            self._adopt()
        row = models.ClientToken
        digest = tokens.hash_secret(self._key, secret).hex()
        if list(row.select(row.id).where(row.token_hash == digest, row.deleted_at.is_null()).execute(self._db)):
            raise AlreadyExists("this token cannot be chosen: choose another one")
        return {
            "token_hash": digest,
            "hash_key_id": tokens.key_fingerprint(self._key),
            "display_hint": tokens.display_hint(secret),
            "weak": int(tokens.is_weak(secret)),
        }


_COLUMNS = ("name", "allowed_models", "enabled", "expires_at", "customer", "remark", "max_amount_nanos", "budget_mode")


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Field values as the table keeps them."""
    columns = dict(values)
    if "allowed_models" in columns:
        columns["allowed_models"] = ",".join(columns["allowed_models"]) or None
    if "enabled" in columns:
        columns["enabled"] = int(columns["enabled"])
    if columns.get("expires_at") is not None:
        columns["expires_at"] = to_text(columns["expires_at"])
    return columns


def _to_token(row: Any) -> ClientToken:
    return ClientToken(
        id=row.id,
        name=row.name or f"token-{row.id}",
        display_hint=row.display_hint,
        weak=bool(row.weak),
        allowed_models=models_of_text(row.allowed_models),
        enabled=bool(row.enabled),
        expires_at=_expiry(row.expires_at),
        customer=row.customer,
        remark=row.remark,
        created_at=_moment(row.created_at) or _UNKNOWN,
        last_used_at=_moment(row.last_used_at),
        version=row.version,
        max_amount_nanos=row.max_amount_nanos,
        budget_mode=row.budget_mode,
        period_spent_nanos=row.period_spent_nanos,
        amount_spent_nanos=row.total_spent_nanos,
        held_nanos=row.held_nanos,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        request_count=row.request_count,
    )


def _has_inbox(row: Any) -> bool:
    return row.token is not None or row.max_amount is not None or row.amount_spent is not None


def _expiry(text: str | None) -> datetime | None:
    if text is None or not text.strip():
        return None
    try:
        return parse_expiry(text)
    except (ValueError, OverflowError):
        return _UNREADABLE


def _moment(text: str | None) -> datetime | None:
    """A moment; None for none, and for what a person wrote there that is none: one row must not hide the others."""
    try:
        return None if text is None else from_text(text)
    except (ValueError, OverflowError):
        return None


def _told(token: ClientToken) -> dict[str, Any]:
    """What the audit log tells of a token."""
    return {
        "name": token.name,
        "display_hint": token.display_hint,
        "allowed_models": list(token.allowed_models),
        "enabled": token.enabled,
        "expires_at": token.expires_at,
        "customer": token.customer,
        "remark": token.remark,
        "max_amount_nanos": token.max_amount_nanos,
        "budget_mode": token.budget_mode,
        "version": token.version,
    }


def _subject(token: ClientToken) -> str:
    return f"token:{token.id}"


def _not_found(token_id: int) -> NotFound:
    return NotFound(f"there is no token {token_id}")


def _check_chosen(secret: str) -> None:
    try:
        tokens.check_chosen(secret)
    except ValueError as error:
        raise InvalidArgument(f"token is wrong: {error}", metadata={"param": "token"}) from None
