"""What each customer has used, summed up over the tokens that were made for them, deleted ones included."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.storage.database import Database, faults

_FIGURES = (
    "customer, COUNT(*) - COUNT(deleted_at), COUNT(deleted_at), SUM(request_count), SUM(prompt_tokens),"
    " SUM(completion_tokens), SUM(total_spent_nanos), SUM(held_nanos)"
)


@dataclass(frozen=True, slots=True)
class CustomerTotals:
    """One customer's totals. Money in nano-dollars; `customer` empty: tokens for which nobody was named."""

    customer: str
    tokens: int
    deleted_tokens: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    amount_spent_nanos: int
    held_nanos: int


class CustomerStore:
    """Reads customers' totals. Raises DatabaseUnavailable."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def page(self, *, limit: int, after: str | None = None) -> list[CustomerTotals]:
        """The customers after one, by name. Reads their tokens in the order of an index, and no request."""
        condition = "" if after is None else "WHERE customer > ?"
        with faults():
            rows = self._db.query(
                f"SELECT {_FIGURES} FROM client_tokens {condition} GROUP BY customer ORDER BY customer LIMIT ?",
                [limit] if after is None else [after, limit],
            )
        return [CustomerTotals(str(customer), *map(int, figures)) for customer, *figures in rows]
