"""A backup of a running installation holds one moment of it, and usage that is replayed into an old one is counted once."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp

from tests.suite.audit import open_holds
from tests.suite.conftest import Installation, Installer
from tests.suite.load import call, calls
from tests.suite.stack import Stack, wait_for

SLOW = {"stream": True, "prompt": "tokens:4 chunks:4 seconds:0.4"}


def books(stack: Stack) -> list[dict[str, Any]]:
    return stack.query("SELECT id, total_spent_nanos, held_nanos, open_calls, request_count FROM client_tokens ORDER BY id")


def refused(stack: Stack) -> list[dict[str, Any]]:
    """What proxies have set aside."""
    lines = [line for path in (stack.data / "outbox").glob("refused-*.log") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def restore_beside(suite: Installation, file: Path, name: str) -> Stack:
    beside = Stack(suite.stack.directory / name, (suite.stack.directory / "gateway.toml").read_text())
    beside.gateway("restore", str(file))
    return beside


async def test_a_backup_under_load_is_whole_and_its_books_add_up(fresh: Installer):
    suite = fresh("auth", "proxy")
    token = suite.token(max_amount=50)
    load = asyncio.create_task(calls(suite.stack.base_url, token, 300, at_once=20, model="gpt-test", **SLOW))
    files = []
    await asyncio.to_thread(wait_for, "calls are being made", lambda: len(suite.provider.calls()) > 20)
    while not load.done() and len(files) < 2:
        files.append(suite.stack.directory / f"{len(files)}.tar")
        await asyncio.to_thread(suite.stack.gateway, "backup", "--out", str(files[-1]))
    told = await load
    assert [one.status for one in told if not one.whole] == []
    assert files
    counts = []
    for number, file in enumerate(files):
        with restore_beside(suite, file, f"beside-{number}") as beside:
            with closing(sqlite3.connect(beside.database)) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert beside.gateway("reconcile").stdout == "0 differences\n"
            counts.append(beside.query("SELECT COUNT(*) AS n FROM requests")[0]["n"])
    assert counts == sorted(counts)
    assert 0 < counts[0] < 300


async def test_usage_that_is_replayed_into_an_older_backup_is_counted_once(fresh: Installer):
    suite = fresh("auth", "proxy")
    stack, file = suite.stack, suite.stack.directory / "old.tar"
    token = suite.token(max_amount=50)
    await calls(stack.base_url, token, 5, at_once=5, model="gpt-test")
    slow = "unique:{} tokens:20 chunks:20 seconds:4"
    async with aiohttp.ClientSession(trust_env=False) as session:
        streams = [
            asyncio.create_task(call(session, stack.base_url, token, model="gpt-test", stream=True, prompt=slow.format(number)))
            for number in range(5)
        ]
        await asyncio.to_thread(wait_for, "all are upstream", lambda: len(suite.provider.calls()) == 10)
        await asyncio.to_thread(stack.gateway, "backup", "--out", str(file))
        await calls(stack.base_url, token, 7, at_once=7, model="gpt-test")  # known to no backup
        later = [
            asyncio.create_task(call(session, stack.base_url, token, model="gpt-test", stream=True, prompt=slow.format(number)))
            for number in range(5, 8)
        ]
        await asyncio.to_thread(wait_for, "these are upstream", lambda: len(suite.provider.calls()) == 20)
        stack.kill("auth")
        assert all(one.whole for one in await asyncio.gather(*streams, *later))
    stack.kill("proxy")

    stack.data.rename(stack.directory / "lost")
    stack.gateway("restore", str(file))
    assert open_holds(stack.database) == 5
    for turn in range(2):  # the second time all of it is replayed again, as by somebody who was not sure
        shutil.copytree(stack.directory / "lost" / "outbox", stack.data / "outbox", dirs_exist_ok=True)
        stack.start("auth", "proxy")
        stack.wait_until_ready()
        wait_for("all is replayed", lambda expected=3 * (turn + 1): len(refused(stack)) == expected, seconds=15)
        wait_for("all is settled", lambda: open_holds(stack.database) == 0, seconds=15)
        stack.stop("proxy")
        stack.stop("auth")
        if turn == 0:
            first = books(stack)
        assert books(stack) == first
        assert stack.gateway("reconcile").stdout == "0 differences\n"
    rows = stack.query("SELECT state, usage_source FROM requests")
    assert len(rows) == 10
    assert {(row["state"], row["usage_source"]) for row in rows} == {("settled", "provider")}
    assert {line["reason"] for line in refused(stack)} == {"NOT_FOUND"}
