"""Changes that were asked for with an id: the same id again is known, whatever became of the first answer."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from gateway.clock import to_text
from gateway.errors import AlreadyExists, InvalidArgument
from gateway.ids import is_canonical_uuid
from gateway.storage import models
from gateway.storage.database import Database

KEEP: Final = timedelta(days=30)
"""How long an id is remembered at least."""
_FORGET_AT_ONCE: Final = 200  # rows, so that nobody who wants to write waits long


def forget_old(db: Database, now: datetime) -> int:
    """Deletes the ids of changes that are older than `KEEP`, in short transactions; gives how many there were.

    Any number of processes may do so at once. Raises DatabaseUnavailable; what was deleted by then stays deleted.
    """
    before, forgotten = to_text(now - KEEP), 0
    while True:
        with db.write():
            rows = db.query(
                "SELECT request_id FROM operations WHERE created_at < ? ORDER BY created_at, request_id LIMIT ?",
                (before, _FORGET_AT_ONCE),
            )
            db.run_many("DELETE FROM operations WHERE request_id = ?", rows)
        forgotten += len(rows)
        if len(rows) < _FORGET_AT_ONCE:
            return forgotten


class Operations:
    """Remembers ids of changes, for 30 days. Both methods belong inside one `write()`, before and after the change.

    key: the token key. What is kept of the arguments is keyed by it, as a chosen secret among them may be guessable.
    """

    def __init__(self, db: Database, *, key: bytes) -> None:
        self._db = db
        self._key = key

    def repeated(self, request_id: str, rpc: str, arguments: Mapping[str, Any]) -> int | None:
        """The noted id (`token_id`) of the same change when it was made before, else None; always None without an id.

        Raises InvalidArgument when the id is no UUID, AlreadyExists when it was used for something else.
        """
        if not request_id:
            return None
        row = models.Operation.select().where(models.Operation.request_id == _canonical(request_id))
        found = next(iter(row.execute(self._db)), None)
        if found is None:
            return None
        if found.rpc != rpc or not hmac.compare_digest(found.digest, self._digest(rpc, arguments)):
            raise AlreadyExists("request_id was used for another change: take a new UUID")
        return int(found.token_id)

    def note(self, request_id: str, rpc: str, arguments: Mapping[str, Any], *, token_id: int, at: datetime) -> None:
        """Writes down that the change was made. Nothing without an id.

        token_id: of the token; of what was made where that is a price or an adjustment.
        """
        if request_id:
            models.Operation.insert(
                request_id=_canonical(request_id),
                rpc=rpc,
                digest=self._digest(rpc, arguments),
                token_id=token_id,
                created_at=to_text(at),
            ).execute(self._db)

    def _digest(self, rpc: str, arguments: Mapping[str, Any]) -> str:
        canonical = json.dumps([rpc, dict(arguments)], sort_keys=True, default=str)
        return hmac.digest(self._key, b"operation\0" + canonical.encode(), "sha256").hex()


def _canonical(request_id: str) -> str:
    if not is_canonical_uuid(request_id.lower()):
        raise InvalidArgument(
            "request_id is a UUID, such as 0190b0a4-5b7c-7e3a-9d55-0f6c1a2b3c4d", metadata={"param": "request_id"}
        )
    return request_id.lower()
