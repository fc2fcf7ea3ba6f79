"""M3: holds that are larger than costs make callers wait, and lock nobody out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import aiohttp
import pytest

from tests.prove.site import Site, outcomes
from tests.suite.audit import Prices
from tests.suite.load import Told, call

TENTH = Prices(output="100.00")  # of the model `tenth`: 100 tokens cost a cent
WRITES_100 = "tokens:100 seconds:0.05"


async def patient(
    doors: list[str], token: str, count: int, *, seconds: float, **fields: object
) -> tuple[list[Told], Counter[str]]:
    """So many calls at once over all doors; who is told to wait comes back after Retry-After, for so many seconds.

    Gives the last answer of each, and how often which refusal told somebody to wait.
    """
    waits: Counter[str] = Counter()
    end = time.monotonic() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:

        async def one(door: str) -> Told:
            while True:
                told = await call(session, door, token, model="tenth", prompt=WRITES_100, **fields)  # type: ignore[arg-type] # the test's own fields
                if told.status not in {429, 503} or not told.retry_after or time.monotonic() > end:
                    return told
                waits[f"{told.status} {told.code}"] += 1
                await asyncio.sleep(float(told.retry_after))

        told = await asyncio.gather(*(one(doors[turn % len(doors)]) for turn in range(count)))
    return told, waits


async def _waited_for(site: Site, proof, shape: str, calls: int, **limit: int) -> list[Told]:
    fit = calls // 5
    token = site.token(max_amount=fit / 100)
    told, waits = await patient(site.doors, token, calls, seconds=60, **limit)
    passed = sum(one.whole for one in told)
    proof.between(f"{shape}: of {calls} callers passed", passed, fit - 1, fit)
    proof.only(f"{shape}: last answers", outcomes(told), {"200", "402 insufficient_quota"})
    proof.note(f"{shape}: told to wait", dict(waits))
    early = [one.text for one in told if one.status == 402 and "is spent" not in one.text]
    proof.equals(f"{shape}: refused for good while money is left", early[:1], [])
    proof.equals(f"{shape}: spent, in nano-dollars", site.row(token)["period_spent_nanos"], passed * 10_000_000)
    return told


@pytest.mark.proves("M3")
async def test_callers_who_honour_retry_after_get_all_the_money_though_calls_hold_more_than_they_cost(site, proof):
    """Each call costs a cent. With a limit of 500 tokens it holds five; with none stated, what its model can write, or less.

    Callers wait for 60 s at the most; whoever still waits then has found money held for all that time.
    """
    site = site("auth", "proxy", is_forked=True)
    calls = proof.size(500)
    shapes = ({"max_tokens": 500}, {})
    with site.watched():
        if proof.size(1, 0):  # in full one after the other; in `make test` both at once, as their waits are most of the time
            told = [await _waited_for(site, proof, str(shape or "no limit stated"), calls, **shape) for shape in shapes]
        else:
            told = await asyncio.gather(
                *(_waited_for(site, proof, str(shape or "no limit stated"), calls, **shape) for shape in shapes)
            )
    holds = [row["held_nanos"] for row in site.stack.query("SELECT held_nanos FROM requests")]
    proof.note("the largest hold, in dollars", max(holds) / 1e9)
    proof.at_least("holds of exactly $0.05", holds.count(50_000_000), 1)
    site.settle(TENTH, [one for of_shape in told for one in of_shape])
