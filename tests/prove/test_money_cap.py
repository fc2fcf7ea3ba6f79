"""M1, M2, M3: a strict budget is kept whatever runs at once, and never locks out money that is there."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.prove.site import outcomes
from tests.suite.conftest import CENT
from tests.suite.load import Told, call

REFUSALS = {"402 insufficient_quota", "429 budget_reserved"}


async def race(doors: list[str], token: str, count: int, **fields: object) -> list[Told]:
    """So many calls at once, over all doors in turns; each is made once."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
        return await asyncio.gather(
            *(call(session, doors[turn % len(doors)], token, model="cent", **fields) for turn in range(count))  # type: ignore[arg-type] # the test's own fields
        )


async def raced(site, proof, *, stream: bool, prompt: str) -> None:
    calls, rounds = proof.size(500, 100), proof.size(5, 1)
    fit = calls // 5
    site = site("auth", "proxy")
    told: list[Told] = []
    for number in range(1, rounds + 1):
        token = site.token(max_amount=fit / 100)
        before = len(site.provider.calls())
        with site.watched():
            of_round = await race(site.doors, token, calls, stream=stream, prompt=prompt)
        passed = sum(one.whole for one in of_round)
        proof.between(f"round {number}: of {calls} calls at once passed", passed, fit - 1, fit)
        proof.only(f"round {number}: outcomes", outcomes(of_round), {"200", *REFUSALS})
        proof.equals(f"round {number}: calls upstream", len(site.provider.calls()) - before, passed)
        told += of_round
    proof.within("the slowest refusal", max(one.seconds for one in told if one.status != 200), 2)
    site.settle(CENT, told)


@pytest.mark.proves("M1")
async def test_of_many_calls_of_a_cent_at_once_as_many_pass_as_there_are_cents(site, proof):
    await raced(site, proof, stream=False, prompt="tokens:5")


@pytest.mark.proves("M2")
async def test_of_many_streams_of_a_cent_at_once_as_many_pass_as_there_are_cents(site, proof):
    await raced(site, proof, stream=True, prompt="tokens:20 chunks:20 seconds:2")
