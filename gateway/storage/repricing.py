"""What settled calls would have cost at other prices, and the booking of the difference as corrections.

Only calls that the provider's own usage was charged for, and only those whose charge comes out the same when it is computed
again from their row: then the row has all that was charged for. What was booked for a call is noted beside it
(`repriced_calls`), in the transaction of the correction, and counts as charged from then on. So a second run, one that was
killed half-way, or two at once book nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from gateway import usage as units
from gateway.clock import Clock, to_text
from gateway.errors import NotFound
from gateway.pricing import cost_nanos
from gateway.storage.adjustments import book, lock_token
from gateway.storage.audit import Actor
from gateway.storage.batch_rows import candidates_of
from gateway.storage.database import Database
from gateway.storage.prices import PriceBook

AT_ONCE: Final = 500
"""Calls of one transaction, and of one correction at most."""
_CHARGED: Final = "state = 'settled' AND usage_source = 'provider'"
_USAGE: Final = (units.INPUT, units.CACHED_INPUT, units.CACHE_WRITE, units.OUTPUT, units.REASONING)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which calls: admitted at or after `since`, and before `until`. Empty fields let all pass."""

    since: datetime
    until: datetime | None = None
    model: str = ""
    """As the caller asked for it."""
    provider: str = ""
    token_id: int = 0
    price_id: int = 0
    """The price to compute with; 0: the one that holds now for each call's provider and model."""


@dataclass(slots=True)
class Repriced:
    """What came out for one token. Money in nano-dollars."""

    token_id: int
    calls: int = 0
    """Calls that were computed again."""
    left_out: int = 0
    """Calls whose charge does not come out the same from their row, or that have no price now: they stay as they are."""
    charged_nanos: int = 0
    """What they cost, corrections of earlier runs included."""
    would_cost_nanos: int = 0
    adjustment_ids: tuple[int, ...] = ()
    """The corrections that were booked."""

    @property
    def difference_nanos(self) -> int:
        """What is, or was, to be added to the amount spent."""
        return self.would_cost_nanos - self.charged_nanos


@dataclass(frozen=True, slots=True)
class _Call:
    request_id: str
    charged_nanos: int
    would_cost_nanos: int
    price_id: int


class Repricing:
    """Computes and books. Every method raises DatabaseUnavailable."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._prices = PriceBook(db, clock)

    def preview(self, wanted: Selection) -> Iterator[Repriced]:
        """What the selected calls would cost, token by token. Changes nothing. Raises NotFound for no such price or token."""
        self._check(wanted)
        for token_id in self._tokens(wanted):
            result = Repriced(token_id)
            after: str | None = ""
            while after is not None:
                request_ids, after = self._select(wanted, token_id, after)
                self._add(result, self._read(wanted, result, request_ids))
            if result.calls or result.left_out:
                yield result

    def book(self, wanted: Selection, reason: str, *, actor: Actor) -> Iterator[Repriced]:
        """Books the differences, a correction for at most `AT_ONCE` calls of a token; gives what was done, token by token.

        Raises NotFound, and FailedPrecondition where a token's amount spent would be below 0: what came before stays booked.
        """
        self._check(wanted)
        for token_id in self._tokens(wanted):
            result = Repriced(token_id)
            after: str | None = ""
            while after is not None:
                after = self._book_some(wanted, result, after, reason, actor)
            if result.calls or result.left_out:
                yield result

    def _book_some(self, wanted: Selection, result: Repriced, after: str, reason: str, actor: Actor) -> str | None:
        request_ids, following = self._select(wanted, result.token_id, after)
        if not request_ids:
            return following
        with self._db.write():
            token = lock_token(self._db, result.token_id)  # whoever else reprices this token waits here
            calls = self._read(wanted, result, request_ids, locking=self._db.locking)
            changed = [call for call in calls if call.would_cost_nanos != call.charged_nanos]
            if changed:
                now = self._clock.now()
                booked = book(
                    self._db,
                    token,
                    sum(call.would_cost_nanos - call.charged_nanos for call in changed),
                    reason,
                    action="token.reprice",
                    actor=actor,
                    at=now,
                    details={"calls": len(changed), "first": changed[0].request_id, "last": changed[-1].request_id},
                )
                self._db.run_many(
                    "INSERT INTO repriced_calls (request_id, price_id, amount_nanos, adjustment_id) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (request_id) DO UPDATE SET price_id = excluded.price_id,"
                    " amount_nanos = repriced_calls.amount_nanos + excluded.amount_nanos,"
                    " adjustment_id = excluded.adjustment_id",
                    [
                        (call.request_id, call.price_id, call.would_cost_nanos - call.charged_nanos, booked.adjustment.id)
                        for call in changed
                    ],
                )
                result.adjustment_ids += (booked.adjustment.id,)
        self._add(result, calls)
        return following

    def _add(self, result: Repriced, calls: list[_Call]) -> None:
        result.calls += len(calls)
        result.charged_nanos += sum(call.charged_nanos for call in calls)
        result.would_cost_nanos += sum(call.would_cost_nanos for call in calls)

    def _check(self, wanted: Selection) -> None:
        if wanted.price_id and not self._db.query("SELECT 1 FROM prices WHERE id = ?", (wanted.price_id,)):
            raise NotFound(f"there is no price {wanted.price_id}")
        if wanted.token_id and not self._db.query("SELECT 1 FROM client_tokens WHERE id = ?", (wanted.token_id,)):
            raise NotFound(f"there is no token {wanted.token_id}")

    def _tokens(self, wanted: Selection) -> list[int]:
        if wanted.token_id:
            return [wanted.token_id]
        return [int(row[0]) for row in self._db.query("SELECT id FROM client_tokens ORDER BY id")]

    def _select(self, wanted: Selection, token_id: int, after: str) -> tuple[list[str], str | None]:
        """The next calls of a token, and the id to go on from; None: there are no more. Holds nobody up."""
        where = ["token_id = ?", "request_id > ?", _CHARGED, "admitted_at >= ?"]
        parameters: list[Any] = [token_id, after, to_text(wanted.since)]
        for condition, value in (
            ("admitted_at < ?", None if wanted.until is None else to_text(wanted.until)),
            ("'' || request_model = ?", wanted.model or None),
            ("provider = ?", wanted.provider or None),
        ):
            if value is not None:
                where.append(condition)
                parameters.append(value)
        rows = self._db.query(
            f"SELECT request_id FROM requests WHERE {' AND '.join(where)} ORDER BY request_id LIMIT ?", (*parameters, AT_ONCE)
        )
        return [row[0] for row in rows], rows[-1][0] if len(rows) == AT_ONCE else None

    def _read(self, wanted: Selection, result: Repriced, request_ids: list[str], *, locking: str = "") -> list[_Call]:
        """The calls of these that can be computed again; those that cannot are counted.

        locking: keeps them from being deleted by age meanwhile, as what is booked for a call is noted beside it.
        """
        if not request_ids:
            return []
        self._prices.refresh()
        rows = self._db.query(
            "SELECT r.request_id, r.provider, r.candidates, r.price_id, r.cost_nanos, r.input_tokens, r.cached_input_tokens,"
            " r.cache_write_tokens, r.output_tokens, r.reasoning_tokens, COALESCE(d.amount_nanos, 0)"
            " FROM requests r LEFT JOIN repriced_calls d ON d.request_id = r.request_id"
            f" WHERE r.request_id IN ({','.join('?' * len(request_ids))})"
            f" ORDER BY r.request_id{f'{locking} OF r' if locking else ''}",
            request_ids,
        )
        calls = [call for row in rows if (call := self._computed(wanted, row)) is not None]
        result.left_out += len(rows) - len(calls)
        return calls

    def _computed(self, wanted: Selection, row: tuple[Any, ...]) -> _Call | None:
        request_id, provider, candidates, price_id, cost, *counts, corrected = row
        usage = {unit: int(count) for unit, count in zip(_USAGE, counts, strict=True) if count}
        rates = self._prices.rates(int(price_id or 0))
        if (0 if rates is None else cost_nanos(usage, rates)) != cost:
            return None
        known = candidates_of(candidates)
        # Its model at the provider is not in the row: of several at one price, each may be the one.
        served = [one for one in known if one[0] == provider and one[2] == (price_id or 0)] or known[:1]
        new_ids = {wanted.price_id or self._prices.find(served_by, model).price_id for served_by, model, _ in served}
        new_id = new_ids.pop()
        new_rates = self._prices.rates(new_id)
        if new_rates is None or new_ids:
            return None
        return _Call(request_id, int(cost) + int(corrected), cost_nanos(usage, new_rates), new_id)
