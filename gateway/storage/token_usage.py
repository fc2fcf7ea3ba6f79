"""What the holder of a token may know: its books, its models, its last calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gateway.clock import to_text
from gateway.limits import Window
from gateway.quota import TokenState
from gateway.storage.adoption import INBOX, OPENED_BY
from gateway.storage.database import Database
from gateway.storage.periods import spent_since

RECENT_CALLS = 20


@dataclass(frozen=True, slots=True)
class TokenBooks:
    """A token's figures. Money in nano-dollars."""

    state: TokenState
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """A token's totals on one model."""

    model: str
    requests: int
    total_tokens: int
    amount_nanos: int


@dataclass(frozen=True, slots=True)
class Call:
    """One of a token's last calls."""

    request_id: str
    admitted_at: str
    model: str
    tokens: int
    amount_nanos: int
    state: str


def find(db: Database, token_hash: str, now: datetime) -> TokenBooks | None:
    """The books of the live token with this hash, as they stand at a moment; also by a secret that is in its grace time.

    None: there is none, or a person wrote something into it that must be adopted first.
    """
    rows = db.query(
        f"SELECT {INBOX}, prompt_tokens, completion_tokens, total_tokens, id, enabled, expires_at, allowed_models,"
        " max_amount_nanos, budget_mode, period_spent_nanos, held_nanos, budget_period, period_start, allowed_ips,"
        " requests_per_minute, tokens_per_minute, max_parallel_requests, open_calls, window_start, window_requests,"
        " window_tokens"
        f" FROM client_tokens WHERE {OPENED_BY}",
        (token_hash, token_hash, to_text(now)),
    )
    if not rows or rows[0][0]:
        return None
    _, prompt_tokens, completion_tokens, total_tokens, *state = rows[0]
    token_id, enabled, expires_at, models, maximum, mode, spent, held, period, started, addresses, *window = state
    books = TokenState(
        token_id, bool(enabled), expires_at, models, maximum, mode == "strict", spent, held, period, started, addresses,
        Window(*window),
    )  # fmt: skip
    books.roll(now)
    if books.period_start != started:
        books.period_spent_nanos = spent_since(db, token_id, books.period_start)
    return TokenBooks(books, prompt_tokens, completion_tokens, total_tokens)


def by_model(db: Database, token_id: int) -> list[ModelTotals]:
    """A token's totals by model, the dearest first. Reads a row a model and day, not a row a call."""
    rows = db.query(
        "SELECT model, SUM(requests), SUM(input_tokens + output_tokens), SUM(cost_nanos) FROM daily_totals"
        " WHERE token_id = ? GROUP BY model ORDER BY SUM(cost_nanos) DESC, model",
        (token_id,),
    )
    return [ModelTotals(model, int(requests), int(tokens), int(amount)) for model, requests, tokens, amount in rows]


def recent(db: Database, token_id: int) -> list[Call]:
    """A token's last calls, the newest first."""
    rows = db.query(
        "SELECT request_id, admitted_at, request_model, input_tokens + output_tokens, cost_nanos, state FROM requests"
        " WHERE token_id = ? ORDER BY request_id DESC LIMIT ?",
        (token_id, RECENT_CALLS),
    )
    return [Call(*row) for row in rows]
