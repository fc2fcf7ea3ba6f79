"""C15: PostgreSQL crashes and cuts its connections under load: a moment of 503, and nothing else."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

from tests.prove.nemesis import Nemesis
from tests.prove.site import outcomes
from tests.prove.traffic import REFUSED, Traffic
from tests.suite.conftest import RATES
from tests.suite.load import call

HEALED = 5.0  # seconds


async def heals(door: str, token: str) -> float:
    """Seconds until a call succeeds; at most three times as long as it may take."""
    started = time.monotonic()
    async with aiohttp.ClientSession(trust_env=False) as session:
        while time.monotonic() - started < 3 * HEALED:
            if (await call(session, door, token, model="gpt-test", prompt="unique:1 tokens:5")).whole:
                break
    return time.monotonic() - started


@pytest.mark.proves("C15")
async def test_a_database_that_crashes_or_cuts_its_connections_costs_a_moment_and_nothing_else(site, proof):
    site = site("auth", "proxy", has_own_server=True, is_forked=True)
    nemesis = Nemesis(site.stack, proof.chance, site.server)
    acts = [nemesis.crash_database] * proof.size(20) + [nemesis.cut_database] * proof.size(50)
    proof.chance.shuffle(acts)
    healed: list[float] = []
    with site.watched():
        async with site.door() as door:
            traffic = Traffic(door, site.token(max_amount=100_000))
            edge = Traffic.at_the_budget(door, site.token(max_amount=proof.size(500, 50) / 1000))
            probe = site.token(max_amount=1000)

            async def hunt() -> None:
                for act in acts:
                    await asyncio.sleep(proof.chance.uniform(0.3, 1.2))
                    await act()
                    healed.append(await heals(door, probe))

            hunting = asyncio.create_task(hunt())
            await asyncio.gather(traffic.run(hunting.done), edge.run(hunting.done))
            await hunting
        nemesis.tell(proof)
        proof.within("the slowest until calls succeeded again", max(healed), HEALED)
        proof.only("outcomes of a valid token's calls", outcomes(traffic.told), {"200", "503 auth_unavailable"})
        proof.only("the same at the end of a budget", outcomes(edge.told), {"200", "503 auth_unavailable", *REFUSED})
        site.settle(RATES, traffic.told + edge.told)
