"""C21, C22: calls that auth has open and nobody knows: never sent by a proxy that died, or of an older copy of the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.prove.site import LEASE, SHORT_LEASE, Site
from tests.suite.audit import open_holds
from tests.suite.load import calls
from tests.suite.stack import wait_for
from tests.support.postgres import shared_server

CALLS = 40
SOON = 20.0  # seconds: an adoption at the start, and a few repetitions
RULE = 120.0


@pytest.mark.proves("C21")
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
async def test_calls_that_were_never_sent_cost_nothing_where_the_outbox_says_so(site, proof, whole):
    site = site("auth", "proxy", is_forked=True, lease=SHORT_LEASE)
    token = site.token(max_amount=1000)
    async with site.door() as door:
        if not whole:  # something that can be cut off
            stream = asyncio.create_task(
                calls(door, token, 1, at_once=1, model="cent", stream=True, prompt="tokens:20 chunks:20 seconds:30")
            )
            await asyncio.to_thread(wait_for, "it is upstream", lambda: len(site.provider.calls()) == 1)
        for name in site.all_of("auth"):
            site.stack.pause(name)
        load = asyncio.create_task(calls(door, token, CALLS, at_once=CALLS, model="cent"))
        await asyncio.sleep(0.3)  # the first batches are on their way
        for name in site.all_of("proxy"):
            site.stack.pause(name)  # so that the answers are on their way, too, when it dies
        for name in site.all_of("auth"):
            site.stack.go_on(name)
        admitted = int(not whole)
        await asyncio.to_thread(wait_for, "auth has decided", lambda: site.row(token)["open_calls"] > admitted)
        for name in site.all_of("proxy"):
            site.stack.kill(name)
        told = await load
        if not whole:
            await stream
    upstream = len(site.provider.calls())
    if not whole:
        for file in (site.stack.data / "outbox").glob("*.log"):
            os.truncate(file, max(0, file.stat().st_size - 1))
    site.stack.start(*site.all_of("proxy"))
    site.stack.wait_until_ready(60)
    proof.only("statuses", {str(one.status): 1 for one in told}, {"0", "503"})
    proof.equals("calls upstream", upstream, 0 if whole else 1)
    started = time.monotonic()
    await asyncio.to_thread(wait_for, "no hold is open", lambda: not open_holds(site.stack.database), LEASE)
    rows = site.stack.query("SELECT state, cost_nanos, usage_source, error_code FROM requests")
    if whole:
        proof.within("until they are released", time.monotonic() - started, SOON)
        proof.equals(
            "calls that were charged", [row for row in rows if row["cost_nanos"] or row["state"] != "released"][:3], []
        )
        proof.at_least("calls that auth had admitted", len(rows), 1)
    else:
        charged = [row for row in rows if row["cost_nanos"]]
        proof.at_least("calls that were charged their hold", len(charged), 1)
        proof.equals("of these not marked estimated", [row for row in charged if row["usage_source"] != "estimated"][:3], [])
    site.reconcile()


@contextlib.contextmanager
def copied(site: Site, folder: Path) -> Iterator[list[Path | str]]:
    """A copy of the database as it is now, to be put in its place by `put_back`; auth and admin are stopped."""
    if isinstance(site.stack.database, Path):
        copy = folder / "older.db"
        with (
            contextlib.closing(sqlite3.connect(site.stack.database)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        yield [copy]
        return
    server, name = shared_server(), str(site.stack.database).rpartition("/")[2]
    server.terminate_backends(str(site.stack.database))
    older = server.create(name)
    try:
        yield [older]
    finally:
        server.drop(older)


def put_back(site: Site, older: Path | str) -> None:
    """Replaces the database by its older copy; auth is stopped."""
    if isinstance(older, Path):
        for end in ("-wal", "-shm"):
            site.stack.database.with_name(f"gateway.db{end}").unlink(missing_ok=True)
        shutil.copy(older, site.stack.database)
        return
    server, url = shared_server(), str(site.stack.database)
    name, copy = url.rpartition("/")[2], older.rpartition("/")[2]
    server.drop(url)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {copy} STRATEGY file_copy")


@pytest.mark.proves("C22")
async def test_a_ledger_that_was_put_back_locks_no_token(site, proof, tmp_path):
    site = site("auth", "proxy", is_forked=True, lease=SHORT_LEASE)
    token = site.token(max_amount=1000, max_parallel_requests=5)
    auths = site.all_of("auth")
    async with site.door() as door:
        streams = asyncio.create_task(
            calls(door, token, 5, at_once=5, model="cent", stream=True, prompt="tokens:20 chunks:20 seconds:6")
        )
        await asyncio.to_thread(wait_for, "they are open", lambda: site.row(token)["open_calls"] == 5)
        for name in auths:
            site.stack.kill(name)
        with copied(site, tmp_path) as [older]:
            site.stack.start(*auths)
            told = await streams
            proof.equals("streams that ran to their end", sum(one.whole for one in told), 5)
            await asyncio.to_thread(wait_for, "they are settled", lambda: site.row(token)["open_calls"] == 0)
            for name in auths:
                site.stack.kill(name)
            put_back(site, older)
        proof.equals("calls that stand as open in the older copy", site.row(token)["open_calls"], 5)
        site.stack.start(*auths)
        site.stack.wait_until_ready(60)
        started = time.monotonic()
        await asyncio.to_thread(wait_for, "they have ended", lambda: site.row(token)["open_calls"] == 0, RULE)
        proof.within("until they have ended", time.monotonic() - started, RULE)
        rows = site.stack.query("SELECT state, cost_nanos, held_nanos, usage_source FROM requests")
        ended = [(row["state"], row["usage_source"], row["cost_nanos"] == row["held_nanos"]) for row in rows]
        proof.equals("how they have ended", set(ended), {("expired", "estimated", True)})
        again = await calls(door, token, 5, at_once=5, model="cent")
    proof.equals("calls of the token that pass then", sum(one.whole for one in again), 5)
    site.reconcile()
