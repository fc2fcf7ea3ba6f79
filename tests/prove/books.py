"""What the books must say at any moment, while calls run: read over and over, each time in one transaction."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.suite.database import Database

_SQL = """
SELECT t.name, t.total_spent_nanos, t.opening_nanos, t.held_nanos, t.open_calls, t.period_spent_nanos, t.max_amount_nanos,
    COALESCE((SELECT SUM(a.amount_nanos) FROM adjustments a WHERE a.token_id = t.id), 0) AS adjusted,
    COALESCE((SELECT SUM(r.cost_nanos) FROM requests r WHERE r.token_id = t.id), 0) AS cost,
    COALESCE((SELECT SUM(r.held_nanos) FROM requests r WHERE r.token_id = t.id AND r.state = 'admitted'), 0) AS held,
    (SELECT COUNT(*) FROM requests r WHERE r.token_id = t.id AND r.state = 'admitted') AS open
FROM client_tokens t
"""  # one statement sees one moment, on both databases


class Books:
    """looks: how often they were read. problems: what contradicted I5, I6 (the sum of open holds) or I7."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.looks = 0
        self.problems: list[str] = []

    def look(self) -> None:
        """Reads them once. Nothing, when the database is away or stands still at the moment."""
        try:
            with self._connected() as connection:
                rows = [dict(row) for row in connection.execute(_SQL)]
        except (sqlite3.OperationalError, psycopg.OperationalError):
            return
        self.looks += 1
        for row in rows:
            self._check(row)

    def _check(self, row: dict[str, Any]) -> None:
        spent = row["opening_nanos"] + row["cost"] + row["adjusted"]
        if row["total_spent_nanos"] != spent:
            self.problems.append(f"I5: {row['name']} has spent {row['total_spent_nanos']}, its rows say {spent}")
        if (row["held_nanos"], row["open_calls"]) != (row["held"], row["open"]):
            self.problems.append(f"I6: {row['name']} holds {row['held_nanos']} for {row['open_calls']}, its rows {row['held']}")
        limit = row["max_amount_nanos"]
        if limit is not None and row["period_spent_nanos"] + row["held_nanos"] > limit:
            self.problems.append(f"I7: {row['name']} is above its budget: {row['period_spent_nanos']} + {row['held_nanos']}")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        if isinstance(self._database, Path):
            with contextlib.closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, timeout=2)) as file:
                file.row_factory = sqlite3.Row
                yield file
            return
        options = "-c statement_timeout=5000"
        with psycopg.connect(self._database, row_factory=dict_row, connect_timeout=2, options=options) as server:
            yield server
