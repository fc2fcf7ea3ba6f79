"""C16: a wall clock that jumps decides when something expires, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import aiohttp
import psutil
import pytest

from gateway.ids import uuid7, uuid7_milliseconds
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceStub
from tests.prove.site import Site, outcomes
from tests.prove.test_money_cap import race
from tests.suite.conftest import ADMIN_PASSWORD, CENT
from tests.suite.load import Told, calls, paced_calls
from tests.support.clocks import ShiftedClock, compiled

HOUR, DAY = 3600.0, 86400.0
JUMPS = (-DAY, HOUR, -HOUR, DAY)
SERVICES = ("auth", "proxy", "admin")
HALF_AN_HOUR = timedelta(minutes=30)


def older(site: Site, clock: ShiftedClock, days: float) -> None:
    """Has the certificates made days ago: the first minutes of an installation are no time at which to set clocks back."""
    shutil.rmtree(site.stack.data / "pki")
    clock.set(-days * DAY)
    environment = dict(site.stack.environment)
    site.stack.environment |= clock.environment
    try:
        site.stack.gateway("init")
    finally:
        site.stack.environment = environment
        clock.set(0)


class Leased:
    """A call that an internal service has open all the time; its lease is 600 s, and nobody renews it."""

    def __init__(self, site: Site, token: str) -> None:
        self._site, self.request_id = site, uuid7()
        site.stack.gateway("identity", "create", "billing")
        with self._stub() as stub:
            answer = stub.ValidateToken(
                pb.ValidateTokenRequest(
                    token=token,
                    request_id=self.request_id,
                    request_model="cent",
                    candidates=[pb.Candidate(provider="mock", model="cent")],
                    max_output_tokens=10,
                    choices=1,
                    client_ip="127.0.0.1",
                ),
                timeout=5,
            )
        assert answer.HasField("grant"), answer

    @contextlib.contextmanager
    def _stub(self) -> Iterator[AuthServiceStub]:
        identity = Identity.load(self._site.stack.data / "pki" / "billing")
        with sync_channel(f"127.0.0.1:{self._site.stack.auth_port}", identity, "auth") as channel:
            yield AuthServiceStub(channel)

    def report(self) -> str:
        """Ends it as a call that was not made; gives the state of its row."""
        with self._stub() as stub:
            report = pb.RecordUsageRequest(
                request_id=self.request_id, outcome=pb.OUTCOME_RELEASED, source=pb.USAGE_SOURCE_NONE, error_code="not_sent"
            )
            return str(stub.RecordUsage(report, timeout=5).state)


async def signs_in(site: Site) -> str:
    """What comes of a login and of a look at the tokens with it: two statuses."""
    base = site.stack.base_url.removesuffix("/v1")
    async with aiohttp.ClientSession(trust_env=False) as session:
        login = {"username": "admin", "password": ADMIN_PASSWORD}
        async with session.post(f"{base}/auth/login", json=login) as answer:
            status, told = answer.status, await answer.json()
        headers = {"Authorization": f"Bearer {told.get('session_token')}"}
        async with session.get(f"{base}/admin/tokens", headers=headers) as answer:
            return f"{status} {answer.status}"


def cpu(site: Site) -> float:
    """Seconds of CPU that all services have used."""
    processes = (psutil.Process(process.pid) for process in site.stack.processes.values())
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def of_another_day(site: Site) -> int:
    """How many calls have an id in which the time is a day off: proxies make the ids."""
    rows, now = site.stack.query("SELECT request_id FROM requests"), time.time()
    return sum(abs((uuid7_milliseconds(str(row["request_id"])) or 0) / 1000 - now) > DAY / 2 for row in rows)


def expired(site: Site) -> int:
    return int(site.stack.query("SELECT COUNT(*) AS n FROM requests WHERE state = 'expired'")[0]["n"])


@pytest.mark.proves("C16")
async def test_a_clock_that_jumps_ends_tokens_and_nothing_that_runs(site, proof, tmp_path):
    site = site(ready=False)
    stack, library = site.stack, compiled(tmp_path)
    clocks = {service: ShiftedClock(library, tmp_path / f"clock-of-{service}") for service in SERVICES}
    older(site, clocks["auth"], days=3)
    for service, clock in clocks.items():
        for name in site.all_of(service):
            stack.own[name] = clock.environment
    stack.start(*(name for service in SERVICES for name in site.all_of(service)))
    stack.wait_until_ready(60)
    token, small = site.token(max_amount=10_000, requests_per_minute=1_000_000), site.token(requests_per_minute=3)
    now = datetime.now(UTC)
    ends = {site.token(expires_at=(now + step).isoformat()): now + step for step in (-HALF_AN_HOUR, HALF_AN_HOUR)}
    leased = Leased(site, token)
    over, streams = asyncio.Event(), list[asyncio.Task[list[Told]]]()
    wrong, few, doors, shares = [], [], [], list[float]()
    stay, jumps = proof.size(12, 1), JUMPS[: proof.size(4, 1)]  # seconds; the sweeper looks every five
    async with site.door() as door:
        load = asyncio.create_task(
            paced_calls(door, token, a_second=20, until=over.is_set, connections=100, model="cent", prompt="chunks:5 seconds:1")
        )

        async def share(seconds: float) -> float:
            used, since = cpu(site), time.monotonic()
            await asyncio.sleep(seconds)
            return (cpu(site) - used) / (time.monotonic() - since)

        await asyncio.sleep(2)
        before = await share(2 * stay)
        for service, clock in clocks.items():
            for jump in (*jumps, 0.0):
                length = 1.5 * stay + 1
                running = race(site.doors, token, 5, stream=True, prompt=f"tokens:20 chunks:20 seconds:{length}")
                streams.append(asyncio.create_task(running))
                await asyncio.sleep(0.5)
                clock.set(jump)
                shares.append(await share(stay))
                where = f"{service} at {jump / HOUR:+.0f} h"
                for secret, end in ends.items():
                    [one] = await calls(door, secret, 1, at_once=1, model="cent")
                    valid = datetime.now(UTC) + timedelta(seconds=clocks["auth"].seconds) <= end
                    if (one.status, one.code) != ((200, "") if valid else (401, "token_expired")):
                        wrong.append(f"{where}: {one.status} {one.code} though valid is {valid}")
                if service == "auth":
                    four = await calls(door, small, 4, at_once=1, model="cent")
                    few.append(f"{where}: {sum(one.whole for one in four)}")
                if service == "admin":
                    doors.append(await signs_in(site))
        over.set()
        told, ran = await load, [one for task in streams for one in await task]
    every = len(SERVICES) * (len(jumps) + 1)
    proof.only(f"outcomes of {len(told)} calls and streams over {every} jumps", outcomes(told), {"200"})
    proof.equals(f"of {len(ran)} streams open at a jump cut", sum(not one.whole for one in ran), 0)
    proof.equals("answers that were wrong about a token's end", wrong, [])
    counts = [int(one.rpartition(" ")[2]) for one in few]
    proof.holds("3 calls a minute: how many passed after each jump of auth", few, "3 first, then what a minute has left",
        counts[0] >= 3 and all(count <= 4 for count in counts))  # fmt: skip
    proof.equals("login and list of tokens while admin's clock jumps", set(doors), {"200 200"})
    proof.at_least("calls whose id has the time of a proxy whose clock is a day off", of_another_day(site), 1)
    proof.equals("calls that were taken for abandoned", expired(site), 0)
    proof.equals("the call that an internal service had open all the time ends as", leased.report(), "released")
    proof.note("CPU before, in shares of a core", round(before, 3))
    mean, worst = sum(shares) / len(shares), max(shares)
    proof.at_most("CPU afterwards, times before: mean of the jumps", mean / before, 2)
    proof.at_most("CPU afterwards, times before: the worst jump", worst / before, 2 if proof.size(1, 0) else 4)
    passed = [one for one in [*told, *ran] if one.whole]
    site.settle(CENT, passed)
