"""C9: the services start in every order, without their database at first: none gives up, and none refuses a caller for good."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.prove.proof import FULL, PATIENCE
from tests.prove.site import Site, outcomes
from tests.suite.load import Told, call
from tests.suite.stack import wait_for

ORDERS = list(itertools.permutations(("auth", "admin", "proxy")))
READY = 5.0  # seconds after the last part
BETWEEN = 1.0 if FULL else 0.3  # seconds from one start to the next


class Away:
    """Takes the database away, and brings it back: a server that is stopped, or a file that is not there yet."""

    def __init__(self, site: Site) -> None:
        self._server = site.server
        self._file = Path(site.stack.data / "gateway.db")
        self._elsewhere = site.stack.directory / "not-there-yet.db"

    def go(self) -> None:
        if self._server:
            self._server.stop()
        else:
            self._file.rename(self._elsewhere)  # whole: whoever had it open has closed it

    def come(self) -> None:
        if self._server:
            self._server.start()
        else:
            self._elsewhere.rename(self._file)


async def started(
    site: Site,
    order: tuple[str, ...],
    token: str,
    told: list[Told],
    *,
    wait: float = 0.0,
    last: Callable[[], object] = lambda: None,
) -> float:
    """Starts the services in this order, waits for so many seconds, then does the last thing; calls all the while.

    Gives the seconds from the last part on until each edge is ready, admin listens and a call succeeds.
    """
    stack, over = site.stack, asyncio.Event()

    async def caller() -> None:
        async with aiohttp.ClientSession(trust_env=False) as session:
            while not over.is_set():
                for door in site.doors:
                    told.append(await call(session, door, token, model="gpt-test"))
                await asyncio.sleep(0.1)

    def everybody_is_ready() -> bool:
        gave_up = [name for name, process in stack.processes.items() if process.poll() is not None]
        assert not gave_up, f"{gave_up} gave up\n{stack.log_tails()}"
        edges = all(stack.is_ready(name) for name in site.all_of("proxy"))
        return edges and stack.listens(stack.admin_port)

    calling = asyncio.create_task(caller())
    try:
        for service in order:
            stack.start(*site.all_of(service))
            await asyncio.sleep(BETWEEN)
        await asyncio.sleep(wait)
        await asyncio.to_thread(last)
        moment = time.monotonic()
        await asyncio.to_thread(wait_for, "all are ready", everybody_is_ready, seconds=4 * READY * PATIENCE)
        seconds = time.monotonic() - moment
        made = len(told)
        await asyncio.to_thread(wait_for, "calls go on", lambda: len(told) >= made + 2 * len(site.doors))
    finally:
        over.set()
        await calling
    return seconds


@pytest.mark.proves("C9")
async def test_services_start_in_any_order_and_before_their_database(site, proof):
    # Five interpreters that start at once beside other tests measure the machine: a tenth does without them.
    site = site(has_own_server=True, ready=False, is_forked=not FULL)
    stack, away, token = site.stack, Away(site), site.token()
    absent = proof.size(30, 2)
    for order in ORDERS if FULL else proof.chance.sample(ORDERS, 1):
        for database in ("away at first", "there"):
            name, told = f"{', '.join(order)}; database {database}", list[Told]()

            if database == "there":
                seconds = await started(site, order, token, told)
            else:
                away.go()
                seconds = await started(site, order, token, told, wait=absent, last=away.come)
            proof.within(f"{name}: ready after", seconds, READY)
            # 0: nobody listens yet.
            proof.only(f"{name}: outcomes of a valid token's calls", outcomes(told), {"0", "503 auth_unavailable", "200"})
            proof.equals(f"{name}: the last calls", {one.status for one in told[-len(site.doors) :]}, {200})
            for one in list(stack.processes):
                stack.stop(one)
