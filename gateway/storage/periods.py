"""What a token has spent since its budget period began, proven from the rows instead of kept as a sum."""

from __future__ import annotations

from gateway.storage.database import Database

SPENT_SINCE = """
            CASE WHEN t.created_at >= {start} THEN t.opening_nanos ELSE 0 END
            + COALESCE((SELECT SUM(d.cost_nanos) FROM daily_totals d
                WHERE d.token_id = t.id AND d.day >= substr({start}, 1, 10)), 0)
            + COALESCE((SELECT SUM(a.amount_nanos) FROM adjustments a
                WHERE a.token_id = t.id AND a.created_at >= {start}), 0)"""
"""In SQL, for the row `t` of client_tokens and the start of a period: what was admitted, corrected or brought along since."""


def spent_since(db: Database, token_id: int, start: str | None) -> int:
    """What a token has spent since the start of a period, in nano-dollars. Reads a row a model and day.

    start: None where the budget has no periods: all that was ever spent.
    """
    if start is None:
        [(spent,)] = db.query("SELECT total_spent_nanos FROM client_tokens WHERE id = ?", (token_id,))
        return int(spent)
    sql = f"SELECT {SPENT_SINCE.format(start='?')} FROM client_tokens t WHERE t.id = ?"
    [(spent,)] = db.query(sql, (start, start, start, token_id))
    return int(spent)
