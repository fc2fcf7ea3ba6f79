"""The rows of one batch in memory: read once and locked, changed by `batch.py`, written once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from gateway.admission import Admission
from gateway.clock import to_text
from gateway.limits import Window
from gateway.quota import TokenState
from gateway.storage.adoption import INBOX, has_inbox
from gateway.storage.database import Database
from gateway.storage.periods import spent_since
from gateway.usage import Report

_COLUMNS_OF_TOKEN = (
    f"{INBOX}, id, enabled, expires_at, allowed_models, max_amount_nanos, budget_mode, period_spent_nanos, held_nanos,"
    " budget_period, period_start, allowed_ips, requests_per_minute, tokens_per_minute, max_parallel_requests, open_calls,"
    " window_start, window_requests, window_tokens,"
    " token_hash, previous_token_hash, previous_valid_until,"
    " total_spent_nanos, prompt_tokens, completion_tokens, total_tokens, request_count, last_used_at, deleted_at"
)
_COLUMNS_OF_REQUEST = (
    "request_id, token_id, identity, state, candidates, admitted_at, period_start, held_nanos, granted_max_output_tokens,"
    " cost_nanos, price_id, request_model, admission_digest, report_digest, input_tokens, output_tokens, expected_tokens"
)


@dataclass(slots=True, kw_only=True)
class TokenRow(TokenState):
    """A token in memory, with its counters."""

    token_hash: str | None
    previous_token_hash: str | None
    """Of the secret before the last rotation."""
    previous_valid_until: str | None
    total_spent_nanos: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    request_count: int
    last_used_at: str | None
    deleted_at: str | None
    changed: bool = False

    def admitted_at(self, now: str) -> str:
        """When a call of now is admitted by the token's books, as the database's text.

        A clock that was set back, or another machine's that is behind, counts on in the period and the minute that the token
        is in; a call of before them would count in none.
        """
        return max(now, self.period_start or "", self.window.window_start or "")

    def remaining_nanos(self) -> int | None:
        """What is left of the budget, holds not taken off; None: no budget."""
        return None if self.max_amount_nanos is None else self.max_amount_nanos - self.period_spent_nanos


@dataclass(slots=True)
class RequestRow:
    """A call in memory."""

    request_id: str
    token_id: int
    identity: str
    state: str
    candidates: str
    """JSON: [provider, model, price_id] of each."""
    admitted_at: str
    period_start: str | None
    held_nanos: int
    granted_max_output_tokens: int | None
    cost_nanos: int
    price_id: int | None
    request_model: str
    admission_digest: str
    report_digest: str | None
    input_tokens: int = 0
    output_tokens: int = 0
    expected_tokens: int = 0


class AdoptFirst(Exception):
    """A person has written into the table of tokens, and the batch may depend on it."""


class BatchRows:
    """What a batch reads and writes, inside one transaction that the caller holds. For one use."""

    def __init__(self, db: Database, now: datetime, *, may_adopt: bool = True) -> None:
        self._db = db
        self._now = now
        self._now_text = to_text(now)
        self._may_adopt = may_adopt
        self.requests: dict[str, RequestRow] = {}
        self.tombstones: dict[str, str] = {}
        self.tokens: dict[int, TokenRow] = {}
        self.by_hash: dict[str, TokenRow] = {}
        self.inserts: list[tuple[Any, ...]] = []
        self.updates: list[tuple[Any, ...]] = []
        self.new_tombstones: list[tuple[Any, ...]] = []
        self.audits: list[tuple[Any, ...]] = []
        self.totals: dict[tuple[int, str, str], list[int]] = {}

    def read(self, settlements: Sequence[Report], admissions: Sequence[Admission]) -> None:
        """Reads the rows that these items are about, and locks them: ids without a row, tokens, then requests.

        Raises AdoptFirst.
        """
        reported = {report.request_id for report in settlements}
        asked = {admission.request_id for admission in admissions if admission.request_id}
        if self._db.is_shared:
            token_ids = self._read_shared(reported, asked)
        else:
            self._read_requests(reported | asked)
            token_ids = {row.token_id for row in self.requests.values()}
        token_ids |= {report.token_id for report in settlements if report.token_id}
        token_ids |= {admission.token_id for admission in admissions if admission.token_id}
        hashes = {admission.token_hash for admission in admissions}
        written_into = self._read_tokens(token_ids, hashes)
        if self._may_adopt and (written_into or self._may_be_new(hashes - self.by_hash.keys())):
            raise AdoptFirst
        if self._db.is_shared:
            self._read_requests(reported | asked)
        if missing := (reported | asked) - self.requests.keys():
            self.tombstones = dict(
                self._select("SELECT request_id, report_digest FROM tombstones WHERE request_id IN", missing)
            )

    def _may_be_new(self, missing: set[str]) -> bool:
        """Whether tokens that were not found may stand there in plain text, or did when they were looked for."""
        if not missing:
            return False
        if has_inbox(self._db):
            return True
        # Another process may have adopted them between the two looks.
        look = "SELECT 1 FROM client_tokens WHERE deleted_at IS NULL AND token_hash IN"
        return self._db.is_shared and bool(self._select(look, missing))

    def _read_shared(self, reported: set[str], asked: set[str]) -> set[int]:
        """Keeps other processes away from ids that have no row yet; gives the tokens of those that have one.

        Another process may be told that a call was not made while this one admits it: no row that both could lock tells them
        of each other.
        """
        select = "SELECT request_id, token_id FROM requests WHERE request_id IN"
        known = dict(self._select(select, reported))
        unknown = reported - known.keys()
        self._db.serialize(*asked, *unknown)
        known |= self._select(select, unknown)  # what was admitted between the look and the lock
        return set(known.values())

    def _read_requests(self, ids: Iterable[str]) -> None:
        columns = f"SELECT {_COLUMNS_OF_REQUEST} FROM requests WHERE request_id IN"
        order = " ORDER BY request_id" if self._db.locking else ""
        self.requests = {row[0]: RequestRow(*row) for row in self._select(columns, ids, order + self._db.locking)}

    def _read_tokens(self, ids: Iterable[int], hashes: Iterable[str]) -> bool:
        """Reads tokens by id or by the hash of a live one, that of a secret in its grace time included.

        Gives whether a person wrote into one of them.
        """
        wanted_ids, wanted_hashes = _padded(ids), _padded(hashes)
        conditions = []
        if wanted_ids:
            conditions.append(f"id IN ({_marks(wanted_ids)})")
        if wanted_hashes:
            conditions.append(f"(deleted_at IS NULL AND token_hash IN ({_marks(wanted_hashes)}))")
            conditions.append(f"previous_token_hash IN ({_marks(wanted_hashes)})")
        if not conditions:
            return False
        order = f" ORDER BY id{self._db.locking}" if self._db.locking else ""
        rows = self._db.query(
            f"SELECT {_COLUMNS_OF_TOKEN} FROM client_tokens WHERE {' OR '.join(conditions)}{order}",
            [*wanted_ids, *wanted_hashes, *wanted_hashes],
        )
        inbox = False
        for row in rows:
            inbox = inbox or bool(row[0])
            token = _token(row)
            started = token.period_start
            token.roll(self._now)
            if token.period_start != started:  # 0, unless a person has written another period into the row
                token.period_spent_nanos = spent_since(self._db, token.id, token.period_start)
            self.tokens[token.id] = token
            if token.deleted_at is None:
                self._open_by_hash(token)
        return inbox

    def _open_by_hash(self, token: TokenRow) -> None:
        """Notes a live token under the secrets that open it now."""
        if token.token_hash is not None:
            self.by_hash[token.token_hash] = token
        if token.previous_token_hash is not None and (token.previous_valid_until or "") > self._now_text:
            self.by_hash[token.previous_token_hash] = token

    def _select(self, sql: str, values: Iterable[Any], end: str = "") -> list[tuple[Any, ...]]:
        wanted = _padded(values)
        return self._db.query(f"{sql} ({_marks(wanted)}){end}", wanted) if wanted else []

    def write(self) -> None:
        """Writes what has changed."""
        changed = sorted((token for token in self.tokens.values() if token.changed), key=lambda token: token.id)
        with self._db.together():
            run_many = self._db.run_many
            run_many(
                "UPDATE client_tokens SET held_nanos = ?, period_spent_nanos = ?, total_spent_nanos = ?, prompt_tokens = ?,"
                " completion_tokens = ?, total_tokens = ?, request_count = ?, last_used_at = ?, period_start = ?,"
                " open_calls = ?, window_start = ?, window_requests = ?, window_tokens = ? WHERE id = ?",
                [
                    (
                        token.held_nanos,
                        token.period_spent_nanos,
                        token.total_spent_nanos,
                        token.prompt_tokens,
                        token.completion_tokens,
                        token.total_tokens,
                        token.request_count,
                        token.last_used_at,
                        token.period_start,
                        token.window.open_calls,
                        token.window.window_start,
                        token.window.window_requests,
                        token.window.window_tokens,
                        token.id,
                    )
                    for token in changed
                ],
            )
            run_many(
                "INSERT INTO requests (request_id, parent_request_id, token_id, identity, proxy_id, state, endpoint, dialect,"
                " stream, request_model, candidates, admitted_at, period_start, held_nanos, granted_max_output_tokens,"
                " price_id, client_ip, user_agent, admission_digest, expected_tokens)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                self.inserts,
            )
            run_many(
                "UPDATE requests SET state = ?, settled_at = ?, cost_nanos = ?, price_id = ?, provider = ?,"
                " response_model = ?, input_tokens = ?, cached_input_tokens = ?, cache_write_tokens = ?, output_tokens = ?,"
                " reasoning_tokens = ?, usage_json = ?, usage_source = ?, status = ?, error_code = ?, attempts_json = ?,"
                " ttft_ms = ?, duration_ms = ?, report_digest = ? WHERE request_id = ?",
                self.updates,
            )
            add_totals(self._db, self.totals)
            run_many(
                "INSERT INTO tombstones (request_id, identity, report_digest, created_at) VALUES (?, ?, ?, ?)",
                self.new_tombstones,
            )
            run_many("INSERT INTO audit (at, actor, action, subject, after_json) VALUES (?, ?, ?, ?, ?)", self.audits)


def _token(row: tuple[Any, ...]) -> TokenRow:
    _, token_id, enabled, expires_at, allowed_models, maximum, mode, spent, held, *rest = row
    period, period_start, allowed_ips, requests, tokens, parallel, open_calls, window_start, used, used_tokens, *rest = rest
    token_hash, previous_hash, previous_until, *rest = rest
    total_spent, prompt_tokens, completion_tokens, total_tokens, request_count, last_used_at, deleted_at = rest
    return TokenRow(
        token_id,
        bool(enabled),
        expires_at,
        allowed_models,
        maximum,
        mode == "strict",
        spent,
        held,
        period,
        period_start,
        allowed_ips,
        Window(requests, tokens, parallel, open_calls, window_start, used, used_tokens),
        token_hash=token_hash,
        previous_token_hash=previous_hash,
        previous_valid_until=previous_until,
        total_spent_nanos=total_spent,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=total_tokens,
        request_count=request_count,
        last_used_at=last_used_at,
        deleted_at=deleted_at,
    )


def locked_places(db: Database, items: Sequence[Report | Admission]) -> set[int]:
    """The places of the items whose token another transaction holds at this moment."""
    reports = _padded({item.request_id for item in items if isinstance(item, Report)} or {""})
    hashes = _padded({item.token_hash for item in items if isinstance(item, Admission)} or {""})
    tokens = (
        f"FROM client_tokens WHERE id IN (SELECT token_id FROM requests WHERE request_id IN ({_marks(reports)}))"
        f" OR (deleted_at IS NULL AND token_hash IN ({_marks(hashes)})) OR previous_token_hash IN ({_marks(hashes)})"
    )
    wanted = [*reports, *hashes, *hashes]
    with db.write():
        there = {row[0]: row[1:] for row in db.query(f"SELECT id, token_hash, previous_token_hash {tokens}", wanted)}
        free = db.query(f"SELECT id {tokens} ORDER BY id{db.locking} SKIP LOCKED", wanted)
        select = f"SELECT request_id, token_id FROM requests WHERE request_id IN ({_marks(reports)})"
        token_of: dict[str, int] = dict(db.query(select, reports))
    locked = there.keys() - {token_id for (token_id,) in free}
    locked_hashes = {token_hash for token_id in locked for token_hash in there[token_id]}
    return {
        place
        for place, item in enumerate(items)
        if (item.token_hash in locked_hashes if isinstance(item, Admission) else token_of.get(item.request_id) in locked)
    }


def add_totals(db: Database, totals: dict[tuple[int, str, str], list[int]]) -> None:
    """Adds to the daily totals, inside a transaction: (token id, day, model) -> requests, input, output, nano-dollars."""
    db.run_many(
        "INSERT INTO daily_totals (token_id, day, model, requests, input_tokens, output_tokens, cost_nanos)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (token_id, day, model) DO UPDATE SET"
        " requests = daily_totals.requests + excluded.requests,"
        " input_tokens = daily_totals.input_tokens + excluded.input_tokens,"
        " output_tokens = daily_totals.output_tokens + excluded.output_tokens,"
        " cost_nanos = daily_totals.cost_nanos + excluded.cost_nanos",
        [(*key, *values) for key, values in sorted(totals.items())],
    )


encode_candidates = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` with arguments makes an encoder a call


@lru_cache(maxsize=1024)
def candidates_of(text: str) -> tuple[tuple[str, str, int], ...]:
    """(provider, model, price id) of each candidate of a row."""
    return tuple((str(provider), str(model), int(price_id)) for provider, model, price_id in json.loads(text))


def _padded(values: Iterable[Any]) -> list[Any]:
    """Sorted, and as many as a power of two, so that a handful of statements serve every size and stay prepared."""
    wanted = sorted(values)
    if wanted:
        size = 1 << (len(wanted) - 1).bit_length()
        wanted += [wanted[-1]] * (size - len(wanted))
    return wanted


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))
