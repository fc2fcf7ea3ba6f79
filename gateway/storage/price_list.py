"""The price book as administrators read and change it. Each change is one short transaction with its audit record in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from gateway import usage as units
from gateway.clock import Clock, from_text, to_text
from gateway.errors import FailedPrecondition, InvalidArgument, NotFound
from gateway.patterns import MAX_NAME_LENGTH
from gateway.price_rows import PriceRow
from gateway.pricing import Rates
from gateway.storage import audit
from gateway.storage.audit import Actor
from gateway.storage.database import Database
from gateway.storage.models import Price
from gateway.storage.operations import Operations
from gateway.storage.prices import LOADING, SOURCES, bump
from gateway.storage.races import again_when_raced

_ADMIN: Final = "admin"
_MOST_TOKENS: Final = 1_000_000_000
_SLACK: Final = timedelta(minutes=1)  # a moment that has just passed on the way here is now


@dataclass(frozen=True, slots=True)
class ListedPrice:
    """A row of the book."""

    id: int
    provider: str
    model: str
    pattern: str
    rates: Rates
    context_window: int | None
    max_output_tokens: int | None
    valid_from: datetime | None
    """None: always."""
    source: str
    created_at: datetime
    retired_at: datetime | None


@dataclass(frozen=True, slots=True)
class PriceFilter:
    """Which rows; empty fields let all pass."""

    provider: str = ""
    model: str = ""
    source: str = ""
    with_retired: bool = False


class PriceList:
    """Reads the rows of all sources, adds and retires an administrator's. Every method raises DatabaseUnavailable."""

    def __init__(self, db: Database, *, token_key: bytes, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._operations = Operations(db, key=token_key)

    def page(self, wanted: PriceFilter, *, limit: int, before_id: int | None = None) -> list[ListedPrice]:
        """The rows below an id, the newest first. Raises InvalidArgument for a source that is none."""
        if wanted.source and wanted.source not in SOURCES:
            raise InvalidArgument(f"source is one of {', '.join(SOURCES)}", metadata={"param": "source"})
        given = {"provider": wanted.provider, "model": wanted.model, "source": wanted.source}
        where = [f"{column} = ?" for column, value in given.items() if value]
        parameters: list[Any] = [value for value in given.values() if value]
        if not wanted.with_retired:
            where.append("retired_at IS NULL")
        if before_id is not None:
            where.append("id < ?")
            parameters.append(before_id)
        condition = f"WHERE {' AND '.join(where)} " if where else ""
        return [_price(row) for row in self._db.query(f"{_SELECT} {condition}ORDER BY id DESC LIMIT ?", (*parameters, limit))]

    def providers(self) -> set[str]:
        """The names that rows may be for: of the providers, and of those that they are priced as."""
        return {str(name) for row in self._db.query("SELECT name, price_provider FROM providers") for name in row}

    @again_when_raced
    def create(self, wanted: PriceRow, valid_from: datetime | None, *, actor: Actor, request_id: str = "") -> ListedPrice:
        """Adds an administrator's price, which holds from a moment on, not in the past; None: from now on.

        Raises InvalidArgument, and AlreadyExists for a request_id that was used for something else.
        """
        _check(wanted)
        arguments = {
            "provider": wanted.provider,
            "model": wanted.model,
            "rates": wanted.rates.to_json(),
            "context_window": wanted.context_window,
            "max_output_tokens": wanted.max_output_tokens,
            "valid_from": None if valid_from is None else to_text(valid_from),
        }
        with self._db.write():
            self._db.serialize(LOADING)
            if (known := self._operations.repeated(request_id, "CreatePrice", arguments)) is not None:
                return self._get(known)
            now = self._clock.now()
            if valid_from is not None and valid_from < now - _SLACK:
                raise InvalidArgument(
                    "valid_from is in the past: a price holds from now on or later", metadata={"param": "valid_from"}
                )
            begins = now if valid_from is None else max(valid_from, now)
            price_id = int(
                Price.insert(
                    provider=wanted.provider,
                    model=wanted.model,
                    pattern=wanted.pattern,
                    rates=wanted.rates.to_json(),
                    context_window=wanted.context_window,
                    max_output_tokens=wanted.max_output_tokens,
                    valid_from=to_text(begins),
                    source=_ADMIN,
                    created_at=to_text(now),
                ).execute(self._db)
            )
            bump(self._db)
            self._operations.note(request_id, "CreatePrice", arguments, token_id=price_id, at=now)
            told = arguments | {"rates": json.loads(wanted.rates.to_json()), "valid_from": begins}
            audit.record(self._db, actor, "price.create", f"price:{price_id}", at=now, after=told)
            return self._get(price_id)

    def retire(self, price_id: int, *, actor: Actor) -> ListedPrice:
        """Ends an administrator's price. Raises NotFound, and FailedPrecondition for one of another source."""
        with self._db.write():
            self._db.serialize(LOADING)
            price = self._get(price_id)
            if price.source != _ADMIN:
                whose = "gateway.toml" if price.source == "file" else "the built-in table"
                raise FailedPrecondition(f"price {price_id} is one of {whose}: lay another price over it, it goes first")
            if price.retired_at is not None:
                return price
            now = self._clock.now()
            self._db.run("UPDATE prices SET retired_at = ? WHERE id = ?", (to_text(now), price_id))
            bump(self._db)
            told = {"provider": price.provider, "model": price.model, "rates": json.loads(price.rates.to_json())}
            audit.record(self._db, actor, "price.retire", f"price:{price_id}", at=now, before=told)
            return self._get(price_id)

    def _get(self, price_id: int) -> ListedPrice:
        rows = self._db.query(f"{_SELECT} WHERE id = ?", (price_id,))
        if not rows:
            raise NotFound(f"there is no price {price_id}")
        return _price(rows[0])


def pattern_of(model: str) -> str:
    """The match clause of a model's name, `*` as a wildcard."""
    return json.dumps({"glob": model}, separators=(",", ":"))


_SELECT = (
    "SELECT id, provider, model, pattern, rates, context_window, max_output_tokens, valid_from, source, created_at, retired_at"
    " FROM prices"
)


def _check(wanted: PriceRow) -> None:
    for field, text, least in (("provider", wanted.provider, 0), ("model", wanted.model, 1)):
        if not least <= len(text) <= MAX_NAME_LENGTH or not text.isprintable() or text != text.strip():
            raise InvalidArgument(
                f"{field} is a name of {least} to {MAX_NAME_LENGTH} printable characters", metadata={"param": field}
            )
    given = json.loads(wanted.rates.to_json())
    if not given:
        raise InvalidArgument('rates has one rate at least, such as input "2.50"', metadata={"param": "rates"})
    for unit in given:
        if unit not in units.UNITS:
            raise InvalidArgument(
                f"{unit[:100]!r} is no unit; known: {', '.join(sorted(units.UNITS))}", metadata={"param": "rates"}
            )
    for field, count in (("context_window", wanted.context_window), ("max_output_tokens", wanted.max_output_tokens)):
        if count is not None and not 0 <= count <= _MOST_TOKENS:
            raise InvalidArgument(f"{field} is a number of tokens, 0 to {_MOST_TOKENS}", metadata={"param": field})


def _price(row: tuple[Any, ...]) -> ListedPrice:
    price_id, provider, model, pattern, rates, window, most, valid_from, source, created_at, retired_at = row
    return ListedPrice(
        id=price_id,
        provider=provider,
        model=model,
        pattern=pattern,
        rates=Rates.from_json(rates),
        context_window=window,
        max_output_tokens=most,
        valid_from=from_text(valid_from) if valid_from else None,
        source=source,
        created_at=from_text(created_at),
        retired_at=None if retired_at is None else from_text(retired_at),
    )
