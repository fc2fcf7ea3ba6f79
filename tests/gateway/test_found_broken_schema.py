"""A database that lacks a table or a column, or is no database at all: 503 and one clear line, and normal when it is mended."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from gateway.errors import DatabaseUnavailable, FailedPrecondition
from gateway.process.metrics import DatabaseMetrics
from gateway.storage import waiting
from gateway.storage.database import connect
from gateway.storage.faults import SchemaIncomplete
from gateway.storage.migrate import migrate
from tests.support.ledger import add_token, admission, make_database, open_ledger
from tests.support.postgres import shared_server

GARBAGE = [b"not a database at all " * 500, os.urandom(8192), b"SQLite format 3\x00" + b"\xff" * 4096]


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("ALTER TABLE requests RENAME TO gone", "ALTER TABLE gone RENAME TO requests"),
        (
            "ALTER TABLE client_tokens RENAME COLUMN held_nanos TO gone",
            "ALTER TABLE client_tokens RENAME COLUMN gone TO held_nanos",
        ),
        ("ALTER TABLE sessions RENAME TO gone", "ALTER TABLE gone RENAME TO sessions"),
    ],
)
def test_a_missing_table_or_column_is_a_database_that_is_away(tmp_path, log_lines, broken, mended):
    with closing(make_database(tmp_path)) as db, closing(open_ledger(db)) as ledger:
        add_token(db)
        metrics = DatabaseMetrics(CollectorRegistry())
        assert metrics.watched(ledger.is_working, lambda: db.trouble)
        with closing(sqlite3.connect(tmp_path / "gateway.db")) as by_hand:
            by_hand.execute(broken)
            for _ in range(3):
                assert not metrics.watched(ledger.is_working, lambda: db.trouble)
            if "sessions" not in broken:
                assert isinstance(_admitted(ledger), DatabaseUnavailable)
            by_hand.execute(mended)
        assert metrics.watched(ledger.is_working, lambda: db.trouble)
        assert not isinstance(_admitted(ledger), Exception)
    lines = [(line["event"], line.get("fault", "")) for line in log_lines() if line["event"].startswith("database_")]
    assert [event for event, _ in lines] == ["database_unusable", "database_usable"]
    assert "lacks a table or a column" in lines[0][1]
    assert "gateway migrate" in lines[0][1]


def _admitted(ledger):
    try:
        return ledger.commit([], [admission()]).admissions[0]
    except DatabaseUnavailable as error:
        return error


def test_postgresql_says_the_same():
    server = shared_server()
    url = server.create()
    try:
        with closing(connect(url)) as db:
            migrate(db)
            assert db.is_reachable()
            with psycopg.connect(url, autocommit=True) as by_hand:
                by_hand.execute("ALTER TABLE requests RENAME TO gone")
                assert not db.is_reachable()
                with pytest.raises(SchemaIncomplete):
                    db.query("SELECT request_id FROM requests")
                by_hand.execute("ALTER TABLE gone RENAME TO requests")
                by_hand.execute("ALTER TABLE client_tokens RENAME COLUMN name TO gone")
                assert not db.is_reachable()
                by_hand.execute("ALTER TABLE client_tokens RENAME COLUMN gone TO name")
            assert db.is_reachable()
    finally:
        server.drop(url)


@pytest.mark.parametrize("garbage", GARBAGE, ids=["text", "noise", "half"])
def test_a_file_that_is_no_database_is_told_at_once(tmp_path, garbage):
    (tmp_path / "gateway.db").write_bytes(garbage)
    with pytest.raises(FailedPrecondition, match=r"gateway\.db: the database is damaged"):
        waiting.for_database(f"sqlite:///{tmp_path}/gateway.db")


def test_a_half_copied_database_is_told_where_it_is_read(tmp_path):
    make_database(tmp_path).close()
    whole = (tmp_path / "gateway.db").read_bytes()
    (tmp_path / "gateway.db").write_bytes(whole[: len(whole) // 3])
    for leftover in tmp_path.glob("gateway.db-*"):
        leftover.unlink()
    try:
        db = waiting.for_database(f"sqlite:///{tmp_path}/gateway.db")
    except FailedPrecondition as error:
        told = str(error)
    else:
        with closing(db):
            assert not db.is_reachable()
            told = db.trouble
    assert "the database is damaged" in told


@pytest.mark.parametrize("service", ["auth", "admin"])
def test_a_service_ends_with_one_clear_line(tmp_path: Path, service: str):
    environment = {**os.environ, "GATEWAY_DATA_DIR": str(tmp_path), "GATEWAY_LOG_FORMAT": "console", "GATEWAY_CONFIG": ""}
    gateway = [sys.executable, "-m", "clients.cli"]
    subprocess.run([*gateway, "init"], env=environment, check=True, capture_output=True, timeout=60)
    for leftover in tmp_path.glob("gateway.db-*"):
        leftover.unlink()
    (tmp_path / "gateway.db").write_bytes(GARBAGE[0])
    done = subprocess.run(
        [sys.executable, "-m", f"services.{service}"], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{service}: ")
    assert "gateway.db: the database is damaged" in line
