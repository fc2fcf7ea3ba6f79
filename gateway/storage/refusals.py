"""Refusals: counted by token, reason and minute, and some of them kept one by one, to be found by their request id."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.storage.database import Database

Counts = Mapping[tuple[int, str, str], tuple[int, str, str]]
"""(token id, reason, minute) -> (count, last address, last request id)."""
UNKNOWN: Final = 0
"""The token id of a refusal where no live token has the secret."""


@dataclass(frozen=True, slots=True)
class KeptRefusal:
    """One call that was refused."""

    request_id: str
    """The id that the caller was told."""
    at: str
    """When, as the database keeps moments."""
    token_id: int
    reason: str
    message: str
    """As auth answered. The proxy has one text of its own for every unknown token."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """The limit that was met, what was left of it, and so on, by the names of `Refusal.metadata`."""
    endpoint: str = ""
    request_model: str = ""
    client_ip: str = ""
    token_name: str = ""
    """Known to readers alone; empty where the token is unknown."""


def add(db: Database, counts: Counts, kept: Sequence[KeptRefusal]) -> None:
    """Adds refusals to both tables, inside a transaction. Of one id the last refusal stays."""
    # Sorted, so that two processes do not wait for each other's rows.
    db.run_many(
        "INSERT INTO denials (token_id, reason, minute, count, last_ip, last_request_id) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (token_id, reason, minute) DO UPDATE SET count = denials.count + excluded.count,"
        " last_ip = excluded.last_ip, last_request_id = excluded.last_request_id",
        [(*key, *value) for key, value in sorted(counts.items())],
    )
    db.run_many(
        "INSERT INTO refusals (request_id, at, token_id, reason, message, figures, endpoint, request_model, client_ip)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (request_id) DO UPDATE SET at = excluded.at,"
        " token_id = excluded.token_id, reason = excluded.reason, message = excluded.message, figures = excluded.figures,"
        " endpoint = excluded.endpoint, request_model = excluded.request_model, client_ip = excluded.client_ip",
        [
            (
                one.request_id,
                one.at,
                one.token_id,
                one.reason,
                one.message,
                json.dumps(dict(one.figures), separators=(",", ":")),
                one.endpoint,
                one.request_model,
                one.client_ip,
            )
            for one in sorted(kept, key=lambda one: one.request_id)
        ],
    )


def find(db: Database, request_id: str) -> KeptRefusal | None:
    """The refusal that was told under this id; None: none was, it is not written yet, or it was only counted."""
    rows = db.query(
        "SELECT r.request_id, r.at, r.token_id, r.reason, r.message, r.figures, r.endpoint, r.request_model, r.client_ip,"
        " t.id, t.name FROM refusals r LEFT JOIN client_tokens t ON t.id = r.token_id WHERE r.request_id = ?",
        (request_id,),
    )
    if not rows:
        return None
    found, at, token_id, reason, message, figures, endpoint, model, client_ip, known, name = rows[0]
    name = "" if known is None else name or f"token-{known}"
    return KeptRefusal(found, at, token_id, reason, message, json.loads(figures), endpoint, model, client_ip, name)
