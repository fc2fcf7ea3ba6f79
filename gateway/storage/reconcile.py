"""Proves the ledger's invariants over a database, and says where they do not hold."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.storage.database import Database
from gateway.storage.periods import SPENT_SINCE


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure that is not what the rows say. Money in nano-dollars."""

    subject: str
    """Such as `token:7`."""
    figure: str
    stored: int
    proven: int


# Each gives (token id, stored, proven); COALESCE because a token without rows has sums of NULL.
_CHECKS = {
    # total_spent = opening + sum of the rows' costs + pruned daily totals + adjustments
    "total_spent_nanos": """
        SELECT t.id, t.total_spent_nanos,
            t.opening_nanos
            + COALESCE((SELECT SUM(r.cost_nanos) FROM requests r WHERE r.token_id = t.id), 0)
            + COALESCE((SELECT SUM(d.pruned_cost_nanos) FROM daily_totals d WHERE d.token_id = t.id), 0)
            + COALESCE((SELECT SUM(a.amount_nanos) FROM adjustments a WHERE a.token_id = t.id), 0)
        FROM client_tokens t""",
    # held = sum of the open holds
    "held_nanos": """
        SELECT t.id, t.held_nanos,
            COALESCE((SELECT SUM(r.held_nanos) FROM requests r WHERE r.token_id = t.id AND r.state = 'admitted'), 0)
        FROM client_tokens t""",
    "open_calls": """
        SELECT t.id, t.open_calls, (SELECT COUNT(*) FROM requests r WHERE r.token_id = t.id AND r.state = 'admitted')
        FROM client_tokens t""",
    "total_tokens": """
        SELECT t.id, t.total_tokens,
            COALESCE((SELECT SUM(d.input_tokens + d.output_tokens) FROM daily_totals d WHERE d.token_id = t.id), 0)
        FROM client_tokens t""",
    "request_count": """
        SELECT t.id, t.request_count, COALESCE((SELECT SUM(d.requests) FROM daily_totals d WHERE d.token_id = t.id), 0)
        FROM client_tokens t""",
    # the daily totals hold every row's cost, pruned or not
    "daily_totals": """
        SELECT t.id, COALESCE((SELECT SUM(d.cost_nanos) FROM daily_totals d WHERE d.token_id = t.id), 0),
            COALESCE((SELECT SUM(r.cost_nanos) FROM requests r WHERE r.token_id = t.id), 0)
            + COALESCE((SELECT SUM(d.pruned_cost_nanos) FROM daily_totals d WHERE d.token_id = t.id), 0)
        FROM client_tokens t""",
    # without budget periods, the current period is all there is
    "period_spent_nanos": """
        SELECT t.id, t.period_spent_nanos, t.total_spent_nanos FROM client_tokens t WHERE t.period_start IS NULL""",
    # with them, it is what was admitted, corrected or brought along since it began
    "period_spent_nanos of the period": f"""
        SELECT t.id, t.period_spent_nanos, {SPENT_SINCE.format(start="t.period_start")}
        FROM client_tokens t WHERE t.period_start IS NOT NULL""",
}

# Rows that no rule can have written.
_FAULTS = {
    "released with a cost": "state = 'released' AND cost_nanos <> 0",
    "open with a cost": "state = 'admitted' AND cost_nanos <> 0",
    "a negative cost or hold": "cost_nanos < 0 OR held_nanos < 0",
    "final without a report": "state IN ('settled', 'released') AND report_digest IS NULL",
    "estimated above its hold": "usage_source = 'estimated' AND cost_nanos > held_nanos AND held_nanos > 0",
}


def reconcile(db: Database) -> list[Difference]:
    """What differs; empty when every invariant holds. Reads one consistent state; services may run meanwhile."""
    differences = []
    with db.snapshot():  # all sums are of the same moment
        for figure, sql in _CHECKS.items():
            differences += [
                Difference(f"token:{token_id}", figure, int(stored), int(proven))
                for token_id, stored, proven in db.query(sql)
                if int(stored) != int(proven)
            ]
        for fault, condition in _FAULTS.items():
            rows = db.query(f"SELECT request_id, cost_nanos, held_nanos FROM requests WHERE {condition} LIMIT 100")
            differences += [Difference(f"request:{row[0]}", fault, int(row[1]), int(row[2])) for row in rows]
    return differences
