"""Reads the budgets of all tokens over and over while calls run: a cap that is passed for a moment is passed (I7)."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg

from tests.suite.database import Database

EVERY = 0.05  # seconds
_SQL = (
    "SELECT name, period_spent_nanos, held_nanos, max_amount_nanos FROM client_tokens"
    " WHERE max_amount_nanos IS NOT NULL AND budget_mode = 'strict' AND period_spent_nanos + held_nanos > max_amount_nanos"
)
_SPENT = "SELECT id, total_spent_nanos FROM client_tokens"


class BudgetWatch:
    """A thread with a connection of its own. `samples`: how often it looked.

    above: what it saw above its budget. fell: tokens whose spending became less, as (id, before, then).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.samples = 0
        self.above: list[tuple[Any, ...]] = []
        self.fell: list[tuple[int, int, int]] = []
        self._spent: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> BudgetWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        connection = None
        while True:
            started = time.monotonic()
            try:
                connection = connection or self._connect()
                self.above += connection.execute(_SQL).fetchall()
                for token, spent in connection.execute(_SPENT).fetchall():
                    if spent < self._spent.get(token, spent):
                        self.fell.append((token, self._spent[token], spent))
                    self._spent[token] = spent
                self.samples += 1
            except (sqlite3.OperationalError, psycopg.OperationalError):
                # Away or locked, as the row may want it; looked at again in a moment.
                if connection is not None:
                    connection.close()
                connection = None
            if self._over.wait(max(0.0, EVERY - (time.monotonic() - started))):
                break
        if connection is not None:
            connection.close()

    def _connect(self) -> Any:
        if isinstance(self._database, Path):
            return sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, timeout=1, check_same_thread=False)
        return psycopg.connect(self._database, autocommit=True, connect_timeout=2)
