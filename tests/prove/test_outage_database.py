"""C19: the database is away for longer than a proxy may be silent, and no live call loses its hold."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import pytest

from tests.prove.site import SHORT_LEASE, Site, outcomes
from tests.suite.conftest import CENT
from tests.suite.load import calls, paced_calls
from tests.suite.stack import wait_for
from tests.support.disks import turned_read_only

HEALED = 2.0  # seconds
STREAMS = 10


@contextlib.contextmanager
def database_away(site: Site):
    """SQLite's file cannot be written, PostgreSQL's server is stopped, while the block runs."""
    if site.server is None:
        files = [site.stack.data / f"gateway.db{end}" for end in ("", "-wal", "-shm")]
        with turned_read_only([site.stack.processes[name].pid for name in site.all_of("auth")], files):
            yield
        return
    site.server.stop(signal.SIGQUIT)
    try:
        yield
    finally:
        site.server.start()
        site.server.wait()


@pytest.mark.proves("C19")
async def test_a_database_that_is_away_for_long_expires_no_live_call(site, proof):
    site = site("auth", "proxy", has_own_server=True, is_forked=True, lease=SHORT_LEASE)
    away = proof.size(70, 7) if SHORT_LEASE is None else SHORT_LEASE + 5
    token, over = site.token(max_amount=1000), asyncio.Event()
    async with site.door() as door:
        prompt = f"tokens:100 chunks:100 seconds:{away + 12}"
        streams = asyncio.create_task(calls(door, token, STREAMS, at_once=STREAMS, model="cent", stream=True, prompt=prompt))
        await asyncio.to_thread(wait_for, "they run", lambda: site.row(token)["open_calls"] == STREAMS)
        load = asyncio.create_task(paced_calls(door, token, a_second=5, until=over.is_set, connections=50, model="cent"))
        await asyncio.sleep(2)
        with contextlib.ExitStack() as outage:
            await asyncio.to_thread(outage.enter_context, database_away(site))
            began = time.monotonic()
            await asyncio.sleep(away)
            healed = time.monotonic()
            await asyncio.to_thread(outage.close)
        back = time.monotonic()
        await asyncio.sleep(6)
        over.set()
        told, ran = await load, await streams
    proof.equals("streams that ran to their end", sum(one.whole for one in ran), STREAMS)
    proof.only("outcomes of calls", outcomes(told), {"200", "503 auth_unavailable"})
    meanwhile = [one for one in told if began + 1 < one.began < healed - 2]  # the last of them wait
    proof.equals("calls that passed meanwhile", sum(one.status == 200 for one in meanwhile), 0)
    failed = [one.began - back for one in told if one.status != 200 and one.began > back]
    proof.within("from then on until no call fails any more", max([0.0, *failed]), HEALED)
    expired = site.stack.query("SELECT request_id FROM requests WHERE error_code = 'lease_expired'")
    proof.equals("calls that expired", expired, [])
    site.settle(CENT, [*told, *ran])
