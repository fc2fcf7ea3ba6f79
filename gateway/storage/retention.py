"""Retention: rows of calls, refusals and counts of them that are older than they are kept are deleted, a few at a time.

What a deleted row cost moves to `daily_totals.pruned_cost_nanos` in the same transaction, so that the books add up at every
moment. Any number of auth processes may do so at once, and be killed at any point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gateway.clock import from_text, to_text
from gateway.ids import uuid7_milliseconds
from gateway.storage.batch import FINAL_AFTER_DAYS
from gateway.storage.database import Database

AT_ONCE: Final = 100
"""Rows of one transaction, which so takes about as long as one of the ledger's own."""
SHORTEST: Final = timedelta(days=FINAL_AFTER_DAYS + 1)
"""The least that is kept: ids of calls are final for a week, and only their rows can tell a repetition from a new call."""

_FINAL: Final = "state IN ('settled', 'released', 'expired')"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a walk over the calls has come: the end of the last one looked at, and its id."""

    settled_at: str = ""
    request_id: str = ""


def old_calls(db: Database, before: datetime, now: datetime, after: Position) -> tuple[list[str], Position | None]:
    """The next calls that may go, by their end; and the position to go on from, None when there are no more.

    before: what ended before this moment goes. Reads without a lock, up to `AT_ONCE` rows.
    A call whose id does not say by itself that it is too old to be reported again stays: its row alone can refuse a repetition.
    """
    rows = db.query(
        "SELECT settled_at, request_id FROM requests WHERE settled_at IS NOT NULL AND settled_at < ?"
        " AND (settled_at, request_id) > (?, ?) ORDER BY settled_at, request_id LIMIT ?",
        (to_text(_cutoff(before, now)), after.settled_at, after.request_id, AT_ONCE),
    )
    latest = (now - SHORTEST).timestamp() * 1000
    found = [row[1] for row in rows if (made := uuid7_milliseconds(row[1])) is not None and made < latest]
    return found, Position(*rows[-1]) if len(rows) == AT_ONCE else None


def prune_calls(db: Database, request_ids: Sequence[str], before: datetime, now: datetime) -> int:
    """Deletes these calls if they are final and old, in one transaction; gives how many there were.

    Locks requests by id, then totals, and no token: no call that is made meanwhile waits for it where rows are locked at all.
    """
    cutoff = to_text(_cutoff(before, now))
    marks = ",".join("?" * len(request_ids))
    order = f" ORDER BY request_id{db.locking}" if db.locking else ""
    pruned: Counter[tuple[int, str, str]] = Counter()
    with db.write():
        rows = db.query(
            "SELECT request_id, token_id, substr(admitted_at, 1, 10), request_model, cost_nanos FROM requests"
            f" WHERE request_id IN ({marks}) AND {_FINAL} AND settled_at < ? AND admitted_at < ?{order}",
            (*request_ids, cutoff, cutoff),
        )
        for _, token_id, day, model, cost in rows:
            pruned[(token_id, day, model)] += int(cost)
        gone = [row[0] for row in rows]
        if not gone:
            return 0
        marks = ",".join("?" * len(gone))
        with db.together():
            db.run(f"DELETE FROM repriced_calls WHERE request_id IN ({marks})", gone)
            db.run(f"DELETE FROM requests WHERE request_id IN ({marks})", gone)
            db.run_many(
                "INSERT INTO daily_totals (token_id, day, model, pruned_cost_nanos) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (token_id, day, model) DO UPDATE SET"
                " pruned_cost_nanos = daily_totals.pruned_cost_nanos + excluded.pruned_cost_nanos",
                [(*key, cost) for key, cost in sorted(pruned.items()) if cost],
            )
    return len(rows)


def prune_denials(db: Database, before: datetime) -> int:
    """Deletes counts of refusals of before this moment, up to `AT_ONCE` of them, in one transaction; gives how many."""
    order = f" ORDER BY minute, token_id, reason LIMIT ?{db.locking}"
    with db.write():
        rows = db.query(
            f"SELECT token_id, reason, minute FROM denials WHERE minute < ?{order}", (to_text(before)[:16], AT_ONCE)
        )
        db.run_many("DELETE FROM denials WHERE token_id = ? AND reason = ? AND minute = ?", rows)
    return len(rows)


def newest_sign(db: Database) -> datetime | None:
    """The newest moment at which a proxy beat or a call was admitted; None where there is neither."""
    rows = db.query("SELECT MAX(last_beat_at) FROM proxies")
    rows += db.query("SELECT admitted_at FROM requests ORDER BY request_id DESC LIMIT 1")
    found = [str(moment) for (moment,) in rows if moment]
    return from_text(max(found)) if found else None


def prune_refusals(db: Database, before: datetime) -> int:
    """Deletes single refusals of before this moment, up to `AT_ONCE` of them, in one transaction; gives how many."""
    order = f" ORDER BY at, request_id LIMIT ?{db.locking}"
    with db.write():
        rows = db.query(f"SELECT request_id FROM refusals WHERE at < ?{order}", (to_text(before), AT_ONCE))
        db.run_many("DELETE FROM refusals WHERE request_id = ?", rows)
    return len(rows)


def _cutoff(before: datetime, now: datetime) -> datetime:
    """What ended before this goes; never what is younger than the shortest time."""
    return min(before, now - SHORTEST)
