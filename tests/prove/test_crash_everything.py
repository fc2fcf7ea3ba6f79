"""C4: everything is killed, stopped and restarted for minutes; the books are right at each moment and at the end."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.prove.books import Books
from tests.prove.nemesis import STILL, Nemesis
from tests.prove.proof import FULL
from tests.prove.site import LEASE, SHORT_LEASE, outcomes
from tests.prove.traffic import REFUSED, Traffic
from tests.suite.conftest import RATES

CALM = 10.0  # seconds after which no call may fail any more
AFTER = 3.0  # seconds of calls without a fault


@pytest.mark.proves("C4")
async def test_while_everything_is_killed_and_stopped_the_books_are_right_and_calm_comes_back_at_once(site, proof):
    site = site("auth", "proxy", "admin", has_own_server=True, is_forked=True, lease=SHORT_LEASE)
    nemesis = Nemesis(site.stack, proof.chance, site.server)
    names = [name for service in ("auth", "proxy", "admin") for name in site.all_of(service)]
    seconds, calm_within = proof.size(600, 8), proof.size(int(CALM), 2)
    books, over = Books(site.stack.database), asyncio.Event()
    calm = 0.0
    with site.watched():
        async with site.door() as door:
            traffic = Traffic(door, site.token(max_amount=100_000))
            edge = Traffic.at_the_budget(door, site.token(max_amount=round(seconds / 300, 2)))

            async def hunt() -> None:
                nonlocal calm
                await nemesis.rage(names, seconds)
                if not any(what.partition("SIGSTOP")[1] for what in nemesis.counts):  # a short run may not have had one
                    await nemesis.stand_still(proof.chance.choice(names))
                calm = time.monotonic()
                await asyncio.sleep(calm_within + AFTER)

            async def read_the_books() -> None:
                while not over.is_set():
                    await asyncio.to_thread(books.look)
                    await asyncio.sleep(1)

            hunting, reading = asyncio.create_task(hunt()), asyncio.create_task(read_the_books())
            await asyncio.gather(traffic.run(hunting.done), edge.run(hunting.done))
            over.set()
            await asyncio.gather(hunting, reading)
        nemesis.tell(proof)
        told = traffic.told + edge.told
        proof.at_least("looks at the books while it raged", books.looks, seconds / (4 * STILL))
        proof.equals("what they contradicted then", books.problems[:3], [])
        proof.note("calls answered in full", traffic.whole)
        proof.only("outcomes", outcomes(traffic.told), {"200", "cut", "0", "503 auth_unavailable"})
        proof.only(
            "the same at the end of a budget", outcomes(edge.told), {"200", "cut", "0", "503 auth_unavailable", *REFUSED}
        )
        failed = [one.began - calm for one in traffic.told if not one.whole]
        if FULL:
            proof.within("the last call to fail began, after the last deed", max([0.0, *failed]), CALM)
        after = [one for one in traffic.told if one.began > calm + calm_within]
        proof.at_least("calls answered in full after that", sum(one.whole for one in after), 1)
        # A tenth is run beside other tests, where an auth may take longer to answer than a proxy waits.
        proof.only("outcomes after that", outcomes(after), {"200"} if FULL else {"200", "503 auth_unavailable"})
        proof.equals("admin listens again", site.stack.listens(site.stack.admin_port), True)
        site.settle(RATES, told, quiet=LEASE, estimates=sum(one.status in {0, 200} and not one.whole for one in told))
