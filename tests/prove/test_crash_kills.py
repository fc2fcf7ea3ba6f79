"""C1, C2: proxies and auths are killed under load, again and again, and the books say the same as the provider's."""

from __future__ import annotations

import asyncio

import pytest

from tests.prove.nemesis import Nemesis
from tests.prove.site import LEASE, SHORT_LEASE, outcomes
from tests.prove.traffic import REFUSED, Traffic
from tests.suite.conftest import RATES


async def killed_under_load(site, proof, service: str) -> tuple[Traffic, Traffic, int]:
    """Kills processes of one service while calls run.

    Gives the calls, those of a token at the end of its budget, and how many were in flight at the kills in all.
    """
    nemesis = Nemesis(site.stack, proof.chance)
    calls, kills = proof.size(5000), proof.size(200)
    in_flight: list[int] = []
    async with site.door() as door:
        traffic = Traffic(door, site.token(max_amount=100_000))
        edge = Traffic.at_the_budget(door, site.token(max_amount=proof.size(500, 50) / 1000))

        def before(name: str) -> None:
            in_flight.append(traffic.in_flight + edge.in_flight)

        hunt = asyncio.create_task(nemesis.kill_over_and_over(site.all_of(service), kills, before=before))

        def over() -> bool:
            return hunt.done() and (traffic.whole >= calls or hunt.exception() is not None)

        await asyncio.gather(traffic.run(over), edge.run(over))
        await hunt
    nemesis.tell(proof)
    proof.equals(f"kill -9 of {service}", len(in_flight), kills)
    proof.at_least("calls answered in full", traffic.whole, calls)
    return traffic, edge, sum(in_flight)


@pytest.mark.proves("C1")
async def test_proxies_that_are_killed_lose_no_call_and_double_none(site, proof):
    site = site("auth", "proxy", is_forked=True, lease=SHORT_LEASE)
    traffic, edge, in_flight = await killed_under_load(site, proof, "proxy")
    told = traffic.told + edge.told
    proof.only("outcomes", outcomes(traffic.told), {"200", "cut", "0", "503 auth_unavailable"})
    # A call that auth has admitted and whose proxy died before it wrote that down is known to the lease alone.
    found = site.settle(RATES, told, quiet=LEASE, estimates=in_flight)
    estimated = found.estimated + found.charged_without_call
    proof.at_most("rows estimated, of calls in flight at the kills", estimated, in_flight)
    proof.at_most(
        "rows estimated, of calls that broke off", estimated, sum(one.status in {0, 200} and not one.whole for one in told)
    )


@pytest.mark.proves("C2")
async def test_while_auths_are_killed_calls_succeed_or_get_503_and_none_passes_unmetered(site, proof):
    site = site("auth", "proxy", is_forked=True)
    with site.watched():
        traffic, edge, _ = await killed_under_load(site, proof, "auth")
        proof.only("outcomes of a valid token's calls", outcomes(traffic.told), {"200", "503 auth_unavailable"})
        proof.only("the same at the end of a budget", outcomes(edge.told), {"200", "503 auth_unavailable", *REFUSED})
        site.settle(RATES, traffic.told + edge.told)
