"""C11: a full disk stops new calls before they cost anything, keeps what runs, and is over as soon as there is space."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.prove.site import Site, outcomes
from tests.prove.test_money_cap import race
from tests.suite.conftest import CENT
from tests.suite.load import Told, paced_calls
from tests.suite.stack import wait_for
from tests.support.disks import SmallDisk, small_disk
from tests.support.postgres import SERVER_USER, shared_server

MEBIBYTES = 16
AWAY, NO_OUTBOX = "503 auth_unavailable", "503 outbox_unavailable"


def streams_upstream(site: Site) -> int:
    """How many of the long streams have reached the provider."""
    return sum(one.directives.get("chunks") == "40" for one in site.provider.calls())


async def fails_and_heals(site: Site, proof, begin, end, refusal: str) -> tuple[list[Told], list[Told]]:
    """Calls and streams run while something fails for a time; what is refused and what goes on. Gives all that was told.

    begin, end: make it fail, and end that. refusal: the only one that there may be, and one that there must be.
    """
    token, length, each = site.token(max_amount=1000), proof.size(20, 2), proof.size(20, 6)
    over = asyncio.Event()
    async with site.door() as door:
        load = asyncio.create_task(
            paced_calls(door, token, a_second=20, until=over.is_set, connections=100, model="cent", prompt="tokens:5")
        )
        await asyncio.sleep(proof.size(5, 1) / 2)
        streams = asyncio.create_task(
            race(site.doors, token, each, stream=True, prompt=f"tokens:40 chunks:40 seconds:{length + 3}")
        )
        await asyncio.to_thread(wait_for, "they are upstream", lambda: streams_upstream(site) >= each, 20, 0.1)
        await asyncio.to_thread(begin)
        failing = time.monotonic()
        await asyncio.sleep(length)
        healed = time.monotonic()
        await asyncio.to_thread(end)
        await asyncio.sleep(proof.size(12, 2))
        over.set()
        told, ran = await load, await streams
    meanwhile = [one for one in told if failing < one.began < healed]
    refused = [one for one in meanwhile if one.status != 200]
    proof.at_least(f"of {len(meanwhile)} calls meanwhile refused", len(refused), 1)
    proof.only("outcomes of all calls", outcomes(told), {"200", refusal})
    proof.within("the slowest refusal", max((one.seconds for one in told if one.status != 200), default=0.0), 2)
    proof.equals("streams that ran on to their end", sum(one.whole for one in ran), each)
    passed = sum(one.whole for one in [*told, *ran])
    proof.equals("calls upstream beside those answered in full", len(site.provider.calls()) - passed, 0)
    failed = [one.began - healed for one in told if one.status != 200 and one.began > healed]
    proof.within("from then on until no call fails any more", max([0.0, *failed]), 10)
    return told, ran


def is_sound(site: Site, proof) -> None:
    """SQLite's own check of the whole file."""
    with contextlib.closing(sqlite3.connect(site.stack.database)) as file:
        proof.equals("PRAGMA integrity_check", file.execute("PRAGMA integrity_check").fetchone()[0], "ok")


@contextlib.contextmanager
def small_tablespace(site: Site) -> Iterator[SmallDisk]:
    """Moves a database of the shared server to a small disk of its own, until the block ends."""
    server, name = shared_server(), str(site.stack.database).rpartition("/")[2]
    with small_disk(server.directory / "small", MEBIBYTES, owner=SERVER_USER) as disk:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{disk.folder}'")
            connection.execute(f"ALTER DATABASE {name} SET TABLESPACE small")
        try:
            yield disk
        finally:
            site.stack.close()
            disk.empty()
            server.terminate_backends(str(site.stack.database))
            with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {name} SET TABLESPACE pg_default")
                connection.execute("DROP TABLESPACE small")


@pytest.mark.proves("C11")
async def test_a_full_disk_under_the_database_refuses_new_calls_and_heals(site, proof, database, tmp_path):
    site = site(ready=False, GATEWAY_OUTBOX_DIR=str(tmp_path / "outbox"))
    own = small_disk(site.stack.data, MEBIBYTES) if database == "sqlite" else small_tablespace(site)
    with own as disk:
        site.stack.start(*site.all_of("auth"), *site.all_of("proxy"))
        site.stack.wait_until_ready(60)
        told, ran = await fails_and_heals(site, proof, disk.fill, disk.empty, AWAY)
        site.settle(CENT, [*told, *ran])
        if database == "sqlite":
            is_sound(site, proof)
        site.stack.close()


@pytest.mark.proves("C11")
async def test_a_full_disk_under_the_outbox_refuses_new_calls_and_heals(site, proof, tmp_path):
    with small_disk(tmp_path / "outbox-disk", MEBIBYTES) as disk:
        site = site("auth", "proxy", GATEWAY_OUTBOX_DIR=str(disk.folder / "outbox"))
        told, ran = await fails_and_heals(site, proof, disk.fill, disk.empty, NO_OUTBOX)
        site.settle(CENT, [*told, *ran])
        site.stack.close()
