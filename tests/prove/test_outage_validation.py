"""C5, C6, C10: while auth cannot decide, callers are told so in time, nothing goes upstream, and it passes by itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import aiohttp
import psutil
import pytest

from tests.prove.scrape import Scrape
from tests.prove.site import Site, outcomes
from tests.suite.audit import open_holds
from tests.suite.conftest import CENT, RATES
from tests.suite.load import Told, call, calls, paced_calls, steady_calls
from tests.suite.stack import Stack, wait_for

AWAY = "503 auth_unavailable"
UNKNOWN = "sk-of-nobody-that-this-gateway-knows"
LOCKER = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30);"
    " db.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.readline(); db.execute('ROLLBACK')"
)


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[max(0, round(share * len(values)) - 1)]


def measured(site) -> tuple[Site, Scrape]:
    """auth and proxy, with their metrics, ready."""
    made = site(ready=False)
    scrape = Scrape(made)
    made.stack.start(*made.all_of("auth"), *made.all_of("proxy"))
    made.stack.wait_until_ready(60)
    return made, scrape


def until_not_ready(stack: Stack, name: str, since: float) -> float:
    """Seconds from a moment until a proxy says that it is not ready."""
    wait_for("it is not ready", lambda: not stack.is_ready(name), seconds=30)
    return time.monotonic() - since


async def first_success(door: str, token: str, since: float, **fields: object) -> float:
    """Seconds from a moment to the end of the first call that succeeds; gives up after 30."""
    async with aiohttp.ClientSession(trust_env=False) as session:
        while not (await call(session, door, token, model="cent", **fields)).whole:  # type: ignore[arg-type] # the test's own fields
            assert time.monotonic() - since < 30, "no call succeeds"
    return time.monotonic() - since


@pytest.mark.proves("C5")
async def test_without_auth_every_call_is_told_so_in_time_and_nothing_goes_upstream(site, proof):
    site, scrape = measured(site)
    stack, proxies = site.stack, site.all_of("proxy")
    token, count = site.token(max_amount=10), proof.size(200)
    before = [one for door in site.doors for one in await calls(door, token, 2, at_once=2, model="cent")]
    proof.only("before: outcomes", outcomes(before), {"200"})
    for name in site.all_of("auth"):
        stack.stop(name)
    told: list[Told] = []
    unready = [asyncio.create_task(asyncio.to_thread(until_not_ready, stack, name, time.monotonic())) for name in proxies]
    for turn, secret in enumerate((token, UNKNOWN)):
        door = site.doors[turn % len(site.doors)]
        told += await calls(door, secret, count // 2, at_once=20, model="cent")
    proof.equals(f"outcomes of {len(told)} calls", dict(outcomes(told)), {AWAY: len(told)})
    proof.equals("answers without Retry-After", sum(not one.retry_after for one in told), 0)
    proof.within("p99 of the answers", percentile([one.seconds for one in told], 0.99), 1.2)
    proof.within("until no proxy is ready", max(await asyncio.gather(*unready)), 5)
    proof.equals("/healthz meanwhile", [stack.status("/healthz", stack.ports[name]) for name in proxies], [200] * len(proxies))
    proof.equals("calls upstream", len(site.provider.calls()), len(before))
    attempts = scrape.total("gateway_proxy_upstream_attempts_total", *proxies)
    proof.equals("attempts at providers, by the metric (fail open)", attempts - len(before), 0.0)
    stack.start(*site.all_of("auth"))
    back = time.monotonic()
    await asyncio.gather(*(first_success(door, token, back) for door in site.doors))
    proof.note("until calls succeed, with auth's own start", f"{time.monotonic() - back:.2f} s")
    site.settle(CENT, before)


@pytest.mark.proves("C6")
async def test_an_auth_that_hangs_costs_its_callers_a_second_and_the_proxy_no_memory(site, proof):
    site, _ = measured(site)
    stack, proxies, auths = site.stack, site.all_of("proxy"), site.all_of("auth")
    token, seconds = site.token(max_amount=1000), proof.size(30, 3)
    over = asyncio.Event()
    resident = {name: psutil.Process(stack.processes[name].pid) for name in proxies}
    async with site.door() as door:
        load = asyncio.create_task(
            paced_calls(
                door, token, a_second=50, until=over.is_set, connections=400, model="gpt-test", prompt="unique:1 tokens:5"
            )
        )
        await asyncio.sleep(proof.size(10, 1))
        before = {name: process.memory_info().rss for name, process in resident.items()}
        paused = time.monotonic()
        for name in auths:
            stack.pause(name)
        most = dict(before)
        while time.monotonic() - paused < seconds:
            await asyncio.sleep(0.2)
            most = {name: max(most[name], process.memory_info().rss) for name, process in resident.items()}
        back = time.monotonic()
        for name in auths:
            stack.go_on(name)
        await asyncio.sleep(proof.size(5, 2))
        over.set()
        told = await load
    # What was on its way at the stop has its second left, and what was decided is in flight.
    hung = [one for one in told if paused + 0.5 < one.began < back - 1.0]
    proof.equals(f"outcomes of {len(hung)} calls while it hangs", dict(outcomes(hung)), {AWAY: len(hung)})
    proof.within("the slowest of them", max([0.0, *(one.seconds for one in hung)]), 1.2)
    proof.only("outcomes of all", outcomes(told), {"200", AWAY})
    for name in proxies:
        proof.at_most(f"{name}: MiB of memory more", (most[name] - before[name]) / 2**20, 32)
    failed = [one.began for one in told if one.status != 200 and one.began > back]
    proof.within("from SIGCONT to the last call that failed", max([0.0, *(moment - back for moment in failed)]), 2)
    wait_for("all holds are gone", lambda: open_holds(stack.database) == 0, seconds=30)
    [void] = stack.query("SELECT COUNT(*) AS n FROM requests WHERE state = 'released' AND error_code = 'not_sent'")
    [left] = stack.query("SELECT COUNT(*) AS n FROM tombstones")
    proof.holds(
        "given-up validations: released, tombstones", f"{void['n']}, {left['n']}", ">= 1 together", void["n"] + left["n"] > 0
    )
    site.settle(RATES, told)


@pytest.mark.proves("C10")
async def test_a_database_that_somebody_locks_is_away_for_its_callers_and_for_no_longer(site, proof):
    site = site("auth", "proxy")
    token, seconds = site.token(max_amount=1000), proof.size(10, 3)
    over = asyncio.Event()
    with site.watched():
        load = asyncio.create_task(
            steady_calls(
                site.doors[0],
                token,
                at_once=8,
                until=over.is_set,
                model="gpt-test",
                streams="unique:1 tokens:5 seconds:0.2",
                plain="unique:1 tokens:5",
            )
        )
        await asyncio.sleep(1)
        locker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LOCKER, str(site.stack.database), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert locker.stdin is not None
        assert locker.stdout is not None
        await locker.stdout.readline()
        locked = time.monotonic()
        await asyncio.sleep(seconds)
        unlocked = time.monotonic()
        locker.stdin.write(b"\n")
        await locker.communicate()
        await asyncio.sleep(2.5)
        over.set()
        told = await load
    meanwhile = [one for one in told if locked < one.began and one.began + one.seconds < unlocked]
    proof.at_least("calls refused while it is locked", sum(one.status == 503 for one in meanwhile), seconds)
    proof.only("outcomes of all", outcomes(told), {"200", AWAY})
    proof.within("the slowest refusal", max([0.0, *(one.seconds for one in told if one.status == 503)]), 2)
    words = [
        one.text for one in told if one.status != 200 and any(word in one.text.lower() for word in ("lock", "sqlite", "busy"))
    ]
    proof.equals("answers that speak of the lock", words[:1], [])
    failed = [one.began - unlocked for one in told if one.status != 200 and one.began > unlocked]
    proof.within("from the unlocking to the last call that failed", max([0.0, *failed]), 2)
    site.settle(RATES, told)
