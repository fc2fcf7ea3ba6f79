"""C7, C8: calls that end while auth is away are kept, reported as soon as it is back, and crowd nobody out."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.prove.site import Site, outcomes
from tests.prove.test_money_cap import REFUSALS, race
from tests.prove.test_outage_validation import AWAY, measured, percentile
from tests.suite.conftest import CENT
from tests.suite.load import paced_calls, patient_calls
from tests.suite.stack import wait_for


def open_before(site: Site, moment: str) -> int:
    """How many calls of those admitted up to a moment nobody has reported."""
    sql = "SELECT COUNT(*) AS n FROM requests WHERE state = 'admitted' AND admitted_at <= ?"
    return int(site.stack.query(sql, moment)[0]["n"])


def last_admission(site: Site) -> str:
    """When the youngest call was admitted, as the database has it."""
    return str(site.stack.query("SELECT MAX(admitted_at) AS at FROM requests")[0]["at"])


async def in_the_end(site: Site, moment: str, seconds: float) -> float:
    """Waits until all calls up to a moment are reported; the seconds that took."""
    started = time.monotonic()
    await asyncio.to_thread(wait_for, "all are reported", lambda: open_before(site, moment) == 0, seconds)
    return time.monotonic() - started


async def upstream(site: Site, count: int) -> None:
    """Waits until so many calls have reached the provider."""
    await asyncio.to_thread(wait_for, "all are upstream", lambda: len(site.provider.calls()) >= count, 60, 0.2)


def replay(site: Site, moment: str) -> tuple[int, float]:
    """Watches until the calls up to a moment are reported: how many in the busiest second, and how long it takes in seconds."""
    started = time.monotonic()
    seen = [(0.0, open_before(site, moment))]
    while seen[-1][1] and seen[-1][0] < 120:
        time.sleep(0.1)
        seen.append((time.monotonic() - started, open_before(site, moment)))
    steps = [(since, was - left, at) for index, (since, was) in enumerate(seen) for at, left in seen[index:]]
    return max(booked for since, booked, at in steps if at - since <= 1.05), seen[-1][0]


@pytest.mark.proves("C7")
async def test_streams_that_end_without_auth_are_whole_and_booked_when_it_is_back(site, proof):
    site = site("auth", "proxy")
    stack, auths = site.stack, site.all_of("auth")
    streams, length, spare = proof.size(300), proof.size(10, 2), proof.size(50)
    token = site.token(max_amount=(streams + spare) / 100)
    with site.watched():
        running = asyncio.create_task(
            race(site.doors, token, streams, stream=True, prompt=f"tokens:{10 * length} chunks:{10 * length} seconds:{length}")
        )
        await upstream(site, streams)
        killed_at = time.monotonic()
        # The last of them reached the provider just now; the row wants 3 s of 10.
        await asyncio.sleep(0.3 * length)
        moment = last_admission(site)
        for name in auths:
            stack.kill(name)
        proof.equals("open when auth is killed", open_before(site, moment), streams)
        told = await running
        proof.equals(f"outcomes of {streams} streams", dict(outcomes(told)), {"200": streams})
        await asyncio.sleep(max(0.0, killed_at + proof.size(60, 4) - time.monotonic()))
        proof.equals("still open: nobody can report them", open_before(site, moment), streams)
        # The callers are there before auth is, and come back as they are told to.
        burst = asyncio.create_task(
            patient_calls(site.doors[-1], token, proof.size(200, 40), seconds=proof.size(20, 10), model="cent")
        )
        await asyncio.sleep(0.5)
        stack.start(*auths)
        await asyncio.to_thread(stack.wait_until_up, *auths)
        proof.within("until all of them are booked", await in_the_end(site, moment, 60), 10)
        rush = await burst
    proof.equals("of the burst passed: what is left of the budget", sum(one.whole for one in rush), spare)
    proof.only("outcomes of the burst", outcomes(rush), {"200", AWAY, *REFUSALS})
    proof.equals("calls upstream", len(site.provider.calls()), streams + spare)
    site.settle(CENT, [*told, *rush])


@pytest.mark.proves("C8")
async def test_an_auth_that_comes_back_is_not_run_over(site, proof):
    site, scrape = measured(site)
    stack, auths, proxies = site.stack, site.all_of("auth"), site.all_of("proxy")
    token, other = site.token(max_amount=1000), site.token(max_amount=1000)
    waiting, away, running = proof.size(1000), proof.size(100, 4), []
    for part in range(10):  # so that auth has them all before it goes away
        seconds = away * (part + 3) // 14 + 3
        prompt = f"unique:1 tokens:10 chunks:2 seconds:{seconds}"
        door = site.doors[part // 2 % len(site.doors)]
        opening = patient_calls(door, token, waiting // 10, seconds=30, model="cent", stream=bool(part % 2), prompt=prompt)
        running.append(asyncio.create_task(opening))
        await upstream(site, waiting // 10 * (part + 1))
    over = asyncio.Event()
    async with site.door() as door:
        load = asyncio.create_task(
            paced_calls(door, other, a_second=20, until=over.is_set, connections=200, model="cent", prompt="unique:1 tokens:5")
        )
        await asyncio.sleep(2)
        moment = last_admission(site)
        for name in auths:
            stack.kill(name)
        gone, left = time.monotonic(), open_before(site, moment)
        kept = [one for part in await asyncio.gather(*running) for one in part]
        await asyncio.sleep(max(0.0, gone + away - time.monotonic()))
        pending = scrape.total("gateway_proxy_outbox_pending", *proxies)
        stack.start(*auths)
        await asyncio.to_thread(wait_for, "auth listens", lambda: any(stack.listens(stack.ports[name]) for name in auths), 30)
        back = time.monotonic()
        most, last = await asyncio.to_thread(replay, site, moment)
        batches = sum(
            scrape.total("gateway_rpc_server_handled_total", *auths, method=method)
            for method in ("BatchRecordUsage", "BatchValidateTokens")
        )
        await asyncio.sleep(proof.size(5, 2))
        over.set()
        told = await load
    proof.equals("outcomes of the calls that ended meanwhile", dict(outcomes(kept)), {"200": waiting})
    proof.at_least(f"settlements that waited, of the {left} calls open when auth was killed", pending, left)
    after = [one for one in told if one.began + one.seconds > back and one.whole]
    proof.within("until the first success", min(one.began + one.seconds for one in after) - back, 2)
    failed = [one.began - back for one in told if one.status != 200 and one.began > back]
    proof.within("until no call fails any more", max([0.0, *failed]), 5)
    during = [one.seconds for one in after if one.began < back + last]
    proof.within("p99 of new calls during the replay", percentile(during or [0.0], 0.99), 1.2)
    proof.within("the replay", last, 10)
    proof.note("settlements booked in its busiest second", most)
    proof.at_most("RPCs a second that auth met meanwhile", batches / max(1.0, last), 200)
    proof.only("outcomes of all new calls", outcomes(told), {"200", AWAY})
    site.settle(CENT, [*kept, *told])
