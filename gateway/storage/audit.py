"""The audit log: written inside the transaction of what it tells of, read by administrators, changed by nobody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.clock import from_text, to_text
from gateway.storage import models
from gateway.storage.database import Database, faults

UNKNOWN_NAME = "unknown"
"""What a login under a name that nobody has is recorded as: people type passwords and tokens where a name is asked for."""
OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, from which address, and by which request, as the logs name it.

    name: `admin:<name>`, `operator`, `service:<identity>` or `login:<name>`.
    """

    name: str
    client_ip: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One record. `before_json` and `after_json` are JSON objects, or empty."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    before_json: str
    after_json: str
    client_ip: str
    request_id: str


def record(
    db: Database,
    actor: Actor,
    action: str,
    subject: str,
    *,
    at: datetime,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Writes down what is being done, inside the caller's `write()`. The values hold no secret: the caller sees to it."""
    models.AuditRecord.insert(
        at=to_text(at),
        actor=actor.name,
        action=action,
        subject=subject,
        before_json=_json(before),
        after_json=_json(after),
        client_ip=actor.client_ip,
        request_id=actor.request_id,
    ).execute(db)


class AuditLog:
    """Reads the audit log."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def page(self, *, limit: int, before_id: int | None = None, action: str = "", subject: str = "") -> list[AuditEntry]:
        """The records below an id, the newest first."""
        row = models.AuditRecord
        query = row.select().order_by(row.id.desc()).limit(limit)
        if before_id is not None:
            query = query.where(row.id < before_id)
        if action:
            query = query.where(row.action == action)
        if subject:
            query = query.where(row.subject == subject)
        with faults():
            return [_entry(found) for found in query.execute(self._db)]


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        at=from_text(row.at),
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        before_json=row.before_json,
        after_json=row.after_json,
        client_ip=row.client_ip,
        request_id=row.request_id,
    )


def _json(values: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(values), ensure_ascii=False, default=_plain) if values else ""


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return to_text(value)
    raise TypeError(f"{type(value).__name__} has no place in an audit record")
