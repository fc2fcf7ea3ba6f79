"""The gateway's database as a person sees it who opens it beside the services: an SQLite file, or a PostgreSQL URL."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

Database = Path | str


def select(database: Database, sql: str, *parameters: object) -> list[dict[str, Any]]:
    """All rows of a statement written with `?`."""
    if isinstance(database, str):
        with psycopg.connect(database, row_factory=dict_row) as server:
            return server.execute(sql.replace("?", "%s"), parameters or None).fetchall()
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as file:
        file.row_factory = sqlite3.Row
        return [dict(row) for row in file.execute(sql, parameters)]


def change(database: Database, sql: str, *parameters: object) -> None:
    """Runs one statement written with `?`, and commits it."""
    if isinstance(database, str):
        with psycopg.connect(database) as server:
            server.execute(sql.replace("?", "%s"), parameters or None)
        return
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as file, file:
        file.execute(sql, parameters)
