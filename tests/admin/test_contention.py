"""Changes beside a database that others write to, or hold."""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import Any

import psycopg
import pytest

from gateway.client_tokens import NewToken
from gateway.clock import SystemClock
from gateway.errors import DatabaseUnavailable
from gateway.storage import models
from gateway.storage.audit import Actor
from gateway.storage.database import connect
from gateway.storage.tokens import TokenStore
from tests.admin.conftest import TOKEN_KEY

OPERATOR = Actor("operator")


def store(database):
    return TokenStore(database, token_key=TOKEN_KEY, clock=SystemClock())


def test_a_change_gets_its_turn_beside_a_writer_that_never_rests(db, database_url):
    stop = threading.Event()

    def write_all_the_time():
        busy, number = connect(database_url, busy_timeout=0.25), 0
        while not stop.is_set():
            with busy.write():
                busy.run_many("INSERT INTO meta (key, value) VALUES (?, '')", [(f"{number}-{row}",) for row in range(30)])
            number += 1
        busy.close()

    writer = threading.Thread(target=write_all_the_time)
    writer.start()
    try:
        made = [store(db).create(NewToken(), actor=OPERATOR) for _ in range(10)]
    finally:
        stop.set()
        writer.join()
    assert len({issued.token.id for issued in made}) == 10


def test_a_database_that_somebody_holds_is_told_in_time_and_nothing_is_changed(db, database_url):
    impatient = connect(database_url, busy_timeout=0.3)
    if database_url.startswith("sqlite:"):
        holder: Any = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
    else:
        holder = psycopg.connect(database_url)
        holder.execute("LOCK TABLE client_tokens IN EXCLUSIVE MODE")  # readers pass, as they do in SQLite
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="busy"):
        store(impatient).create(NewToken(), actor=OPERATOR)
    assert time.monotonic() - started < 1.5
    assert store(impatient).page(limit=10) == []
    holder.execute("ROLLBACK")
    holder.close()
    store(impatient).create(NewToken(), actor=OPERATOR)
    impatient.close()
    assert models.AuditRecord.select().count(db) == 1
