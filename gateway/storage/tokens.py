"""Client tokens as administrators change them. Each change is one short transaction with its audit record in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import field as dataclass_field
from datetime import UTC, datetime
from typing import Any

import peewee

from gateway import tokens
from gateway.client_tokens import CHANGEABLE, ClientToken, NewToken, check_grace
from gateway.clock import Clock, from_text, parse_expiry, to_text
from gateway.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, VersionMismatch
from gateway.limits import period_end, period_start, rolled
from gateway.money import MAX_NANOS
from gateway.patterns import models_of_text
from gateway.quota import TokenStatus
from gateway.storage import audit, models
from gateway.storage.adoption import OPENED_BY, adopt, ask_for_scrubbing, has_inbox
from gateway.storage.audit import Actor
from gateway.storage.database import Database, faults
from gateway.storage.operations import Operations
from gateway.storage.periods import spent_since
from gateway.storage.races import again_when_raced

_UNREADABLE = datetime.min.replace(tzinfo=UTC)  # a hand-written expiry that is no date opens nothing
_UNKNOWN = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Issued:
    """A token with its secret; `secret` None: this was a repeat, and the secret was told before."""

    token: ClientToken
    secret: str | None = dataclass_field(repr=False)


@dataclass(frozen=True, slots=True)
class ToppedUp:
    """A token with a larger budget; `revived`: it was spent before, and calls pass again. False for a repeat."""

    token: ClientToken
    revived: bool


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
        return self._token(row)

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
                self._adopt(wanted=())  # a row that a person is writing in is shown as it was
                rows = list(query.clone().execute(self._db))
        return [self._token(found) for found in rows]

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
                return Issued(self._token(self._row(known)), None)
            values = _columns({name: arguments[name] for name in CHANGEABLE}) | self._secret_columns(secret)
            values["period_start"] = period_start(new.budget_period, now)
            token_id = int(models.ClientToken.insert(**values, created_at=to_text(now)).execute(self._db))
            if not new.name:
                row = models.ClientToken
                row.update(name=f"token-{token_id}").where(row.id == token_id).execute(self._db)
            token = self._token(self._row(token_id))
            self._operations.note(request_id, "CreateToken", arguments, token_id=token_id, at=now)
            audit.record(self._db, actor, "token.create", _subject(token), at=now, after=_told(token))
        return Issued(token, secret)

    def update(self, token_id: int, changes: Mapping[str, Any], *, version: int = 0, actor: Actor) -> ClientToken:
        """Sets fields (those of `client_tokens.CHANGEABLE`, checked). Raises VersionMismatch when `version` is not the token's.

        version: the version that the caller has seen; 0: whatever it is.
        """
        with self._db.write():
            before = self._token(self._row(token_id))
            if version and version != before.version:
                raise VersionMismatch(f"the token is at version {before.version}: read it again, then change it")
            values = dict(changes)
            if values.get("name") == "":
                values["name"] = f"token-{token_id}"
            columns = _columns(values)
            if values.get("budget_period", before.budget_period) != before.budget_period:
                columns |= self._new_period(before, values["budget_period"])
            return self._set(before, columns, action="token.update", actor=actor)

    def set_enabled(self, token_id: int, enabled: bool | None, *, actor: Actor) -> ClientToken:
        """Switches a token on or off; None: the other way round. Where it is so already nothing is changed."""
        with self._db.write():
            before = self._token(self._row(token_id))
            wanted = not before.enabled if enabled is None else enabled
            if wanted == before.enabled:
                return before
            action = "token.enable" if wanted else "token.disable"
            return self._set(before, {"enabled": int(wanted)}, action=action, actor=actor)

    @again_when_raced
    def rotate(self, token_id: int, *, actor: Actor, request_id: str = "", grace_seconds: int = 0) -> Issued:
        """Gives a token a new, generated secret; the old one is dead when this returns, or works on for the grace time.

        Raises InvalidArgument for a grace time that is none.
        """
        grace = check_grace(grace_seconds)
        arguments = {"id": token_id} | ({"grace_seconds": grace_seconds} if grace_seconds else {})
        secret = tokens.generate()
        with self._db.write():
            if self._operations.repeated(request_id, "RotateToken", arguments) is not None:
                return Issued(self._token(self._row(token_id)), None)
            now = self._clock.now()
            row = self._row(token_id)
            self._operations.note(request_id, "RotateToken", arguments, token_id=token_id, at=now)
            works_on = grace and row.token_hash
            previous = {
                "previous_token_hash": row.token_hash if works_on else None,
                "previous_valid_until": to_text(now + grace) if works_on else None,
            }
            columns = self._secret_columns(secret) | previous
            token = self._set(self._token(row), columns, action="token.rotate", actor=actor)
        return Issued(token, secret)

    @again_when_raced
    def top_up(self, token_id: int, amount_nanos: int, *, actor: Actor, request_id: str = "") -> ToppedUp:
        """Raises a budget. FailedPrecondition for a token without one, InvalidArgument for an amount that is not above 0."""
        if not 0 < amount_nanos <= MAX_NANOS:
            raise InvalidArgument("amount is above 0 and at most 9000000000", metadata={"param": "amount"})
        arguments = {"id": token_id, "amount_nanos": amount_nanos}
        with self._db.write():
            if self._operations.repeated(request_id, "TopUpToken", arguments) is not None:
                return ToppedUp(self._token(self._row(token_id)), revived=False)
            before = self._token(self._row(token_id))
            if before.max_amount_nanos is None:
                raise FailedPrecondition("the token has no budget to top up: set max_amount first")
            raised = before.max_amount_nanos + amount_nanos
            if raised > MAX_NANOS:
                raise InvalidArgument("amount is too much: a budget is at most 9000000000", metadata={"param": "amount"})
            now = self._clock.now()
            self._operations.note(request_id, "TopUpToken", arguments, token_id=token_id, at=now)
            spent = TokenStatus.EXHAUSTED
            revived = before.status(now) is spent and replace(before, max_amount_nanos=raised).status(now) is not spent
            told = {"revived": True} if revived else {}
            token = self._set(before, {"max_amount_nanos": raised}, action="token.top_up", actor=actor, told=told)
            return ToppedUp(token, revived)

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
            token = self._token(self._row(token_id))
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

    def _token(self, row: Any) -> ClientToken:
        now = self._clock.now()
        start, spent = rolled(row.budget_period, row.period_start, row.period_spent_nanos, now)
        if start != row.period_start:  # 0, unless a person has written another period into the row
            spent = spent_since(self._db, row.id, start)
        return _to_token(row, spent, now)

    def _adopt(self, wanted: Collection[str] | None = None) -> None:
        if adopt(self._db, self._key, to_text(self._clock.now()), wanted=wanted):
            ask_for_scrubbing(self._db)

    def _new_period(self, token: ClientToken, period: str) -> dict[str, Any]:
        """The columns of a token whose budget starts anew at other times: what it has spent since the period of now began."""
        start = period_start(period, self._clock.now())
        return {"period_start": start, "period_spent_nanos": spent_since(self._db, token.id, start)}

    def _set(
        self,
        before: ClientToken,
        columns: Mapping[str, Any],
        *,
        action: str,
        actor: Actor,
        told: Mapping[str, Any] | None = None,
    ) -> ClientToken:
        """Writes columns, and the audit record of what has changed by them; `told`: what that says besides."""
        row = models.ClientToken
        row.update(**columns, version=row.version + 1).where(row.id == before.id).execute(self._db)
        after = self._token(self._row(before.id))
        old, new = _told(before), _told(after)
        changed = [name for name in new if old[name] != new[name]]
        audit.record(
            self._db,
            actor,
            action,
            _subject(after),
            at=self._clock.now(),
            before={name: old[name] for name in changed},
            after={name: new[name] for name in changed} | dict(told or {}),
        )
        return after

    def _secret_columns(self, secret: str) -> dict[str, Any]:
        digest = tokens.hash_secret(self._key, secret).hex()
        if has_inbox(self._db):  # one of those may have this very secret
            self._adopt(wanted={digest})
        if self._db.query(f"SELECT id FROM client_tokens WHERE {OPENED_BY}", (digest, digest, to_text(self._clock.now()))):
            raise AlreadyExists("this token cannot be chosen: choose another one")
        return {
            "token_hash": digest,
            "hash_key_id": tokens.key_fingerprint(self._key),
            "display_hint": tokens.display_hint(secret),
            "weak": int(tokens.is_weak(secret)),
        }


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Field values as the table keeps them."""
    columns = dict(values)
    if "allowed_models" in columns:
        columns["allowed_models"] = ",".join(columns["allowed_models"]) or None
    if "allowed_ips" in columns:
        columns["allowed_ips"] = ",".join(columns["allowed_ips"]) or None
    if "enabled" in columns:
        columns["enabled"] = int(columns["enabled"])
    if columns.get("expires_at") is not None:
        columns["expires_at"] = to_text(columns["expires_at"])
    return columns


def _to_token(row: Any, period_spent: int, now: datetime) -> ClientToken:
    """A row as it stands now, without a secret whose grace time is over. period_spent: of the budget period of now."""
    previous = None if row.previous_valid_until is None else from_text(row.previous_valid_until)
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
        period_spent_nanos=period_spent,
        amount_spent_nanos=row.total_spent_nanos,
        held_nanos=row.held_nanos,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        request_count=row.request_count,
        budget_period=row.budget_period,
        resets_at=period_end(row.budget_period, now),
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        max_parallel_requests=row.max_parallel_requests,
        allowed_ips=tuple((row.allowed_ips or "").replace(",", " ").split()),
        open_calls=row.open_calls,
        previous_valid_until=previous if previous is not None and previous > now else None,
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
        "budget_period": token.budget_period,
        "requests_per_minute": token.requests_per_minute,
        "tokens_per_minute": token.tokens_per_minute,
        "max_parallel_requests": token.max_parallel_requests,
        "allowed_ips": list(token.allowed_ips),
        "previous_valid_until": token.previous_valid_until,
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
