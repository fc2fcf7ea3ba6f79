"""Adoption: makes client tokens of rows that a person wrote into the table.

`INSERT INTO client_tokens (name, token) VALUES ('my-first-token', 'my-token')` is all it takes. The plain text and the human
amounts stand in inbox columns; adoption puts the hash and the nano-dollars in their place and empties the inbox. Whoever adopts
has the database's files scrubbed afterwards (`Database.scrub`), so that none keeps the plain text.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Collection
from decimal import Decimal
from typing import Any

from gateway import tokens
from gateway.clock import from_text, parse_expiry
from gateway.limits import parse_addresses, rolled
from gateway.money import to_nanos
from gateway.patterns import parse_models
from gateway.storage.database import Database
from gateway.storage.periods import spent_since

_SCRUB = "truncate_write_ahead_log"
OPENED_BY = (
    "(deleted_at IS NULL AND token_hash = ?) OR (deleted_at IS NULL AND previous_token_hash = ? AND previous_valid_until > ?)"
)
"""Of the live token that a secret opens: its hash twice, and the moment. Each half says all that its index is over: put the
other way round, `deleted_at IS NULL AND (... OR ...)`, SQLite reads every token."""
INBOX = "(token IS NOT NULL OR max_amount IS NOT NULL OR amount_spent IS NOT NULL)"


def has_inbox(db: Database) -> bool:
    """Whether any row still holds a plain token. Costs one look at a small index."""
    return bool(db.query("SELECT 1 FROM client_tokens WHERE token IS NOT NULL LIMIT 1"))


def adopt(db: Database, key: bytes, now: str, *, wanted: Collection[str] | None = None) -> int:
    """Adopts every row with something in its inbox, inside a transaction that the caller holds; gives how many.

    key: the installation's token key. now: the moment as the database writes it. wanted: the hashes of the tokens that are
    waited for where somebody else holds their rows; other rows that are held are left for later. None: all are waited for.
    A row that cannot be read is disabled, and the audit says why; so is one whose token another live row has.
    """
    ids = _lock(db, key, wanted)
    for token_id in ids:
        try:
            [row] = db.query(
                "SELECT id, name, token, token_hash, allowed_models, expires_at, max_amount, amount_spent, total_spent_nanos,"
                " deleted_at, allowed_ips, budget_period, period_start FROM client_tokens WHERE id = ?",
                (token_id,),
            )
            _adopt_row(db, key, now, row)
        except (AttributeError, TypeError, UnicodeDecodeError):  # bytes where text belongs
            _set_aside(db, now, token_id)
        except sqlite3.OperationalError as error:
            if "UTF-8" not in str(error):
                raise
            _set_aside(db, now, token_id)
    return len(ids)


def _lock(db: Database, key: bytes, wanted: Collection[str] | None) -> list[int]:
    """Locks the rows with something in their inbox; gives their ids in order."""
    inbox = f"SELECT id FROM client_tokens WHERE {INBOX}"
    if wanted is None or not db.locking:
        return [token_id for (token_id,) in db.query(f"{inbox} ORDER BY id{db.locking}")]
    db.serialize("adoption")  # two rows with one secret are adopted one after the other
    waited_for = [
        token_id
        for token_id, token, token_hash, previous in db.query(
            f"SELECT id, token, token_hash, previous_token_hash FROM client_tokens WHERE {INBOX}"
        )
        if token_hash in wanted
        or previous in wanted
        or (isinstance(token, str) and tokens.hash_secret(key, token).hex() in wanted)
    ]
    if waited_for:
        marks = ",".join("?" * len(waited_for))
        db.query(f"SELECT id FROM client_tokens WHERE id IN ({marks}) ORDER BY id{db.locking}", waited_for)
    # Who skips does not wait, so these may come out of order.
    return [token_id for (token_id,) in db.query(f"{inbox} ORDER BY id{db.locking} SKIP LOCKED")]


def ask_for_scrubbing(db: Database) -> None:
    """Inside a `write()`: asks for the database's files to be scrubbed, which hold plain text from now on."""
    db.run(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (_SCRUB, uuid.uuid4().hex),
    )


def asked_for_scrubbing(db: Database) -> str | None:
    """The last request that nobody has met yet."""
    rows = db.query("SELECT value FROM meta WHERE key = ?", (_SCRUB,))
    return str(rows[0][0]) if rows else None


def note_scrubbed(db: Database, asked: str) -> None:
    """Inside a `write()`: this request is met; one that came after it stays."""
    db.run("DELETE FROM meta WHERE key = ? AND value = ?", (_SCRUB, asked))


def _adopt_row(db: Database, key: bytes, now: str, row: tuple[Any, ...]) -> None:
    token_id, name, secret, token_hash, allowed_models, expires_at, max_amount, amount_spent, total_spent, *rest = row
    deleted_at, allowed_ips, period, started = rest
    changes: dict[str, Any] = {"token": None, "max_amount": None, "amount_spent": None, "name": name or f"token-{token_id}"}
    faults = []
    if secret is not None:
        hashed = tokens.hash_secret(key, secret).hex()
        twin = db.query(
            f"SELECT id FROM client_tokens WHERE id <> ? AND ({OPENED_BY})",
            (token_id, hashed, hashed, now),
        )
        if twin:
            faults.append(f"token {twin[0][0]} has the same secret")
        else:
            changes |= {
                "token_hash": hashed,
                "hash_key_id": tokens.key_fingerprint(key),
                "display_hint": tokens.display_hint(secret),
                "weak": int(tokens.is_weak(secret)),
            }
    if max_amount is not None:
        faults += _read(changes, "max_amount_nanos", lambda: to_nanos(_number(max_amount)))
    if amount_spent is not None:
        faults += _read(changes, "spent", lambda: to_nanos(_number(amount_spent)))
    faults += _read(changes, "allowed_models", lambda: ",".join(parse_models(allowed_models or "")) or None)
    if expires_at is not None:
        faults += _read(changes, "expires_at", lambda: (parse_expiry(str(expires_at)), str(expires_at).strip())[1])
    if allowed_ips is not None:
        faults += _read(changes, "allowed_ips", lambda: parse_addresses(allowed_ips.replace(",", " ").split()))
    spent = changes.pop("spent", None)
    start, _ = rolled(period, started, 0, from_text(now))
    changes["period_start"] = start
    if spent is not None and token_hash is None and total_spent == 0:
        changes |= {"opening_nanos": spent, "total_spent_nanos": spent}
    if faults:
        changes["enabled"] = 0
    assignments = ", ".join(f"{column} = ?" for column in changes)
    db.run(f"UPDATE client_tokens SET {assignments} WHERE id = ?", (*changes.values(), token_id))
    if spent is not None and "opening_nanos" not in changes:
        _adjust(db, token_id, spent - total_spent, max(now, start or ""))
    # What was brought along belongs to the period that the row was written in, which may be over; what was written over the
    # amount, to that of now.
    db.run("UPDATE client_tokens SET period_spent_nanos = ? WHERE id = ?", (spent_since(db, token_id, start), token_id))
    told = {"name": changes["name"], "faults": faults, "deleted": deleted_at is not None}
    db.run(
        "INSERT INTO audit (at, actor, action, subject, after_json) VALUES (?, ?, ?, ?, ?)",
        (now, "service:auth", "token.disable_unreadable" if faults else "token.adopt", f"token:{token_id}", json.dumps(told)),
    )


def _set_aside(db: Database, now: str, token_id: int) -> None:
    """Disables a row that nothing can be made of, so that it does not keep others from being adopted."""
    db.run(
        "UPDATE client_tokens SET enabled = 0, token = NULL, max_amount = NULL, amount_spent = NULL, allowed_models = NULL,"
        " name = ? WHERE id = ?",
        (f"token-{token_id}", token_id),
    )
    told = json.dumps({"faults": ["a column is not text in UTF-8"]})
    db.run(
        "INSERT INTO audit (at, actor, action, subject, after_json) VALUES (?, ?, ?, ?, ?)",
        (now, "service:auth", "token.disable_unreadable", f"token:{token_id}", told),
    )


def _adjust(db: Database, token_id: int, difference: int, now: str) -> None:
    """What a person wrote over the amount of a token that already lives is a correction, and is kept as one."""
    db.run(
        "UPDATE client_tokens SET total_spent_nanos = total_spent_nanos + ? WHERE id = ?",
        (difference, token_id),
    )
    db.run(
        "INSERT INTO adjustments (token_id, amount_nanos, reason, actor, created_at) VALUES (?, ?, ?, ?, ?)",
        (token_id, difference, "amount_spent was written by hand", "sql", now),
    )


def _read(changes: dict[str, Any], column: str, read: Any) -> list[str]:
    try:
        changes[column] = read()
    except ValueError as error:
        return [f"{column}: {error}"]
    return []


def _number(value: Any) -> Decimal | float | str:
    return value if isinstance(value, (Decimal, float)) else str(value)
