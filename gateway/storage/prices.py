"""The price book: which rates hold for a model at a provider, now.

Rows are never changed. A new price is a new row and the old one is retired, so that every call keeps the price that it was
admitted at. `prices_revision` in `meta` grows with each change; readers look at it in each transaction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.admission import PriceOrigin
from gateway.clock import Clock, to_text
from gateway.patterns import matches
from gateway.price_rows import PriceRow, ProviderRow
from gateway.pricing import Rates
from gateway.quota import PricedCandidate
from gateway.storage.database import Database
from gateway.storage.models import Meta, Provider

# Who makes models, in the order in which a bare model name is looked up.
MAKERS = ("demo", "openai", "anthropic", "google", "mistral", "x-ai", "deepseek", "cohere", "meta", "moonshotai", "perplexity")

_REVISION = "prices_revision"
LOADING = "prices"
"""Who changes the book is alone: two services that start at once load the same configuration."""
_CACHE_SIZE = 10_000
SOURCES = ("admin", "file", "builtin")
"""Whose a row is; the first that has a price for a model decides."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A live row, ready to be searched."""

    provider: str
    model: str
    clause: dict[str, Any]
    source: int
    candidate: PricedCandidate


class PriceBook:
    """The live prices in memory, read anew when their revision changes. One thread uses one book."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._revision: str | None = None
        self._rows: list[_Row] = []
        self._of_provider: dict[str, list[_Row]] = {}
        self._price_providers: dict[str, str] = {}
        self._found: dict[tuple[str, str], PricedCandidate | None] = {}
        self._rates: dict[int, Rates] = {}
        self._next_change: str = ""

    def refresh(self) -> None:
        """Reads the book anew if it changed, or if a row's day has come. Call it in the transaction that will use it."""
        rows = self._db.query("SELECT value FROM meta WHERE key = ?", (_REVISION,))
        revision = str(rows[0][0]) if rows else ""
        if revision != self._revision or (self._next_change and to_text(self._clock.now()) >= self._next_change):
            self._load()
            self._revision = revision

    def find(self, provider: str, model: str) -> PricedCandidate:
        """The model at the provider with the price that holds now; `rates` None where it has none."""
        key = (provider, model)
        if key not in self._found:
            if len(self._found) >= _CACHE_SIZE:
                self._found.clear()
            self._found[key] = self._search(provider, model)
        found = self._found[key]
        if found is None:
            return PricedCandidate(provider, model)
        return PricedCandidate(provider, model, found.price_id, found.rates, found.context_window, found.max_output_tokens)

    def rates(self, price_id: int) -> Rates | None:
        """The rates of a row, retired or not; None for 0."""
        if price_id == 0:
            return None
        if price_id not in self._rates:
            rows = self._db.query("SELECT rates FROM prices WHERE id = ?", (price_id,))
            self._rates[price_id] = Rates.from_json(rows[0][0])
        return self._rates[price_id]

    def origin(self, price_id: int) -> PriceOrigin | None:
        """Where a row comes from, retired or not; None for 0."""
        rows = self._db.query("SELECT source, valid_from FROM prices WHERE id = ?", (price_id,)) if price_id else []
        return PriceOrigin(*rows[0]) if rows else None

    def models(self, provider: str, patterns: Sequence[str]) -> list[str]:
        """The names of the book that a provider's patterns serve, sorted; names without a wildcard are served as they are."""
        names = {pattern for pattern in patterns if "*" not in pattern}
        if "*" in "".join(patterns):
            names.update(row.model for row in self._rows_of(provider) if "*" not in row.model and matches(row.model, patterns))
        return sorted(names)

    def _load(self) -> None:
        now = to_text(self._clock.now())
        self._rows.clear()
        self._of_provider.clear()
        self._found.clear()
        self._next_change = ""
        rows = self._db.query(
            "SELECT id, provider, model, pattern, rates, context_window, max_output_tokens, valid_from, source FROM prices"
            " WHERE retired_at IS NULL ORDER BY valid_from DESC, id DESC"
        )
        for price_id, provider, model, pattern, rates, context_window, max_output, valid_from, source in rows:
            if valid_from > now:
                self._next_change = min(self._next_change or valid_from, valid_from)
                continue
            candidate = PricedCandidate(provider, model, price_id, Rates.from_json(rates), context_window, max_output)
            self._rows.append(_Row(provider, model, json.loads(pattern), SOURCES.index(source), candidate))
        self._price_providers = dict(self._db.query("SELECT name, price_provider FROM providers"))

    def _origins(self, provider: str) -> tuple[str, ...]:
        """Whose rows hold for a provider, in order: its own, those of the provider it is priced as, those for any."""
        source = self._price_providers.get(provider, provider)
        if provider == "" or source == "demo":  # whoever makes the model
            return (provider, *MAKERS, "")
        return (provider, source, "")

    def _rows_of(self, provider: str) -> list[_Row]:
        """The rows that may hold for a provider: an administrator's first, then the file's, then the built-in ones."""
        if provider not in self._of_provider:
            rank = {origin: place for place, origin in reversed(list(enumerate(self._origins(provider))))}
            rows = [row for row in self._rows if row.provider in rank]
            rows.sort(key=lambda row: (row.source, "*" in row.model, rank[row.provider]))
            self._of_provider[provider] = rows
        return self._of_provider[provider]

    def _search(self, provider: str, model: str) -> PricedCandidate | None:
        name = model.lower()
        return next((row.candidate for row in self._rows_of(provider) if _fits(row.clause, name)), None)


def load_rows(db: Database, source: str, wanted: Iterable[PriceRow], now: str) -> int:
    """Makes the live rows of a source (`builtin`, `file`) these; gives how many rows were added or retired."""

    def key(row: PriceRow) -> tuple[Any, ...]:
        return (
            row.provider,
            row.model,
            row.pattern,
            row.rates.to_json(),
            row.context_window,
            row.max_output_tokens,
            row.valid_from,
        )

    keys = {key(row): row for row in wanted}  # before the transaction: reading the built-in prices takes a second
    with db.write():
        db.serialize(LOADING)
        live = {
            (provider, model, pattern, rates, context_window, max_output, valid_from): price_id
            for price_id, provider, model, pattern, rates, context_window, max_output, valid_from in db.query(
                "SELECT id, provider, model, pattern, rates, context_window, max_output_tokens, valid_from FROM prices"
                " WHERE source = ? AND retired_at IS NULL",
                (source,),
            )
        }
        retired = [(now, price_id) for k, price_id in live.items() if k not in keys]
        added = [(*k, source) for k in keys if k not in live]
        db.run_many("UPDATE prices SET retired_at = ? WHERE id = ?", retired)
        db.run_many(
            "INSERT INTO prices (provider, model, pattern, rates, context_window, max_output_tokens, valid_from, source)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            added,
        )
        if retired or added:
            bump(db)
    return len(retired) + len(added)


def load_providers(db: Database, wanted: Sequence[ProviderRow]) -> None:
    """Makes the providers known to auth and admin these, without their keys."""
    rows = {row.name: (row.name, row.kind, row.price_provider, ",".join(row.models)) for row in wanted}
    with db.write():
        db.serialize(LOADING)
        known = {row[0]: tuple(row) for row in db.query("SELECT name, kind, price_provider, models FROM providers")}
        if known == rows:
            return
        Provider.delete().execute(db)
        db.run_many("INSERT INTO providers (name, kind, price_provider, models) VALUES (?, ?, ?, ?)", list(rows.values()))
        bump(db)


def bump(db: Database) -> None:
    """Inside the `write()` of a change: lets every reader of the book know of it. `serialize(LOADING)` comes first."""
    Meta.insert(key=_REVISION, value="1").on_conflict(
        conflict_target=[Meta.key], update={Meta.value: (Meta.value.cast("INTEGER") + 1).cast("TEXT")}
    ).execute(db)


def _fits(clause: Mapping[str, Any], name: str) -> bool:  # noqa: PLR0911 - one line a kind of clause
    """Whether a lower-case model name is meant by a match clause of genai-prices, or by a `glob` of our own."""
    ((kind, value),) = clause.items()
    match kind:
        case "or":
            return any(_fits(part, name) for part in value)
        case "and":
            return all(_fits(part, name) for part in value)
        case "regex":
            return re.search(value, name) is not None
        case "glob":
            return matches(name, (value.lower(),))
        case "equals":
            return bool(name == value)
        case "starts_with":
            return name.startswith(value)
        case "ends_with":
            return name.endswith(value)
        case "contains":
            return value in name
    raise ValueError(f"a price row has an unknown match clause {kind!r}")
