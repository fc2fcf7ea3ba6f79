"""The replicated stack in containers under fire: the race for a budget, kills of random containers, restarts of each in turn.

    python -m tests.compose.kills [--calls 500] [--kills 40] [--rolls 2] [--rate 50] [--seconds 120] [--only race|kills|rolls]

Needs a Docker engine and some ten minutes. Prints what it saw; exits with 1 at the first promise that was not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp

from tests.compose.replicated import Replicated, replicated
from tests.fakes.balancer import Balancer
from tests.suite.audit import Prices, audit, open_holds
from tests.suite.load import Told, call, calls, paced_calls, steady_calls
from tests.suite.stack import wait_for

CENT, RATES = Prices(per_request="0.01"), Prices(input="1.00", output="2.00")
LEASE = 120.0  # seconds; 60 until a proxy's beat is missed, and the sweeper's own pace


def outcome(told: list[Told]) -> Counter[str]:
    return Counter(f"{one.status} {one.code}".strip() for one in told)


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True, timeout=120)


def said(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def books_are_right(stack: Replicated, prices: dict[str, Prices], told: list[Told], *, seconds: float = 20.0) -> None:
    """Raises AssertionError unless the provider's ledger, the callers and the database agree."""
    wait_for("no hold is open", lambda: open_holds(stack.database) == 0, seconds=seconds, pause=0.5)
    answered = {one.nonce for one in told if one.whole}
    [only] = prices.values()
    findings = audit(stack.database, stack.ledger, only, answered=answered)
    said(f"books: {findings}; reconcile: {stack.reconcile()}")
    assert findings.problems == [], findings.problems[:5]
    assert findings.unreported == 0
    assert stack.reconcile().endswith("0 differences")


async def race(stack: Replicated, count: int) -> None:
    """So many calls of a cent at once over both proxies, for a fifth as many cents.

    Who is not checked within a second, because all of this runs on one machine, gets 503 and has cost nothing.
    """
    warm = stack.token(1)
    for port in stack.ports:
        await calls(f"http://127.0.0.1:{port}/v1", warm, 20, at_once=10, model="cent")
    for stream in (False, True):
        token, before = stack.token(count / 500), len(stack.calls())
        urls = [f"http://127.0.0.1:{port}/v1" for port in stack.ports]
        prompt = "tokens:20 chunks:20 seconds:1" if stream else "tokens:5"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
            told = await asyncio.gather(
                *(call(session, urls[n % 2], token, model="cent", stream=stream, prompt=prompt) for n in range(count))
            )
        passed, fit = sum(one.whole for one in told), count // 5
        slowest = max(one.seconds for one in told)
        said(f"race, {'streams' if stream else 'plain'}: {dict(outcome(told))}, the slowest answer {slowest:.2f} s")
        assert fit - 1 <= passed <= fit
        assert set(outcome(told)) <= {"200", "402 insufficient_quota", "429 budget_reserved", "503 auth_unavailable"}
        assert len(stack.calls()) - before == passed
        wait_for("all are booked", lambda: open_holds(stack.database) == 0)
        assert stack.spent(token) == passed * 10_000_000
    said(f"reconcile: {stack.reconcile()}")


async def kills(stack: Replicated, count: int, services: tuple[str, ...], seed: str) -> None:
    """`docker kill` of a random container of these services and its start, so many times, under 20 calls at a time."""
    token, chance = stack.token(1000), random.Random(seed)
    victims = stack.names(*services)
    killed: Counter[str] = Counter()
    over = False

    async def nemesis() -> None:
        nonlocal over
        for _ in range(count):
            await asyncio.sleep(chance.uniform(0.5, 2.0))
            victim = chance.choice(victims)
            killed[victim] += 1
            await asyncio.to_thread(docker, "kill", victim)
            await asyncio.sleep(chance.uniform(0, 0.5))
            await asyncio.to_thread(docker, "start", victim)
            balancer.ports = await asyncio.to_thread(lambda: stack.ports)
        said(f"killed {dict(killed)}; ready {await asyncio.to_thread(stack.wait_until_ready):.1f} s after the last")
        balancer.ports = stack.ports
        await asyncio.sleep(2)
        over = True

    async with Balancer(stack.ports) as balancer:
        told, _ = await asyncio.gather(
            steady_calls(
                balancer.base_url,
                token,
                at_once=20,
                until=lambda: over,
                streams="unique:1 tokens:30 chunks:30 seconds:1.5",
                plain="unique:1 tokens:8 seconds:0.2",
                model="gpt-test",
            ),
            nemesis(),
        )
    said(f"kills: {dict(outcome(told))}, whole {sum(one.whole for one in told)}")
    assert {one.status for one in told} <= {0, 200, 503}, outcome(told)
    books_are_right(stack, {"gpt-test": RATES}, told, seconds=LEASE)


async def rolls(stack: Replicated, times: int, rate: float, seconds: float) -> None:
    """SIGTERM and start of each container in turn under so many calls a second: every one of them succeeds."""
    token, codes = stack.token(1000), []
    began, rolled = time.monotonic(), False

    def roll(name: str) -> None:
        docker("kill", "--signal", "TERM", name)
        codes.append(subprocess.run(["docker", "wait", name], capture_output=True, text=True, check=True).stdout.strip())
        docker("start", name)
        wait_for(f"{name} is healthy", lambda: _health(name) == "healthy", seconds=60, pause=0.2)

    async def all_of_them() -> None:
        nonlocal rolled
        for name in stack.names("auth", "proxy") * times:
            await asyncio.to_thread(roll, name)
            balancer.ports = await asyncio.to_thread(lambda: stack.ports)
        rolled = True

    async with Balancer(stack.ports) as balancer:
        told, _ = await asyncio.gather(
            paced_calls(
                balancer.base_url,
                token,
                a_second=rate,
                until=lambda: rolled and time.monotonic() - began >= seconds,
                connections=40,
                model="gpt-test",
                prompt="unique:1 tokens:10 seconds:0.3",
            ),
            all_of_them(),
        )
    said(f"rolls: {dict(outcome(told))} in {time.monotonic() - began:.0f} s, exit codes {codes}")
    assert outcome(told) == {"200": len(told)}
    assert all(one.whole for one in told)
    assert set(codes) == {"0"}
    books_are_right(stack, {"gpt-test": RATES}, told)


def _health(name: str) -> str:
    told = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.Health.Status}}", name], capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="in the race (500)")
    parser.add_argument("--kills", type=int, default=40, help="of auth, proxy and admin; a fifth as many with PostgreSQL (40)")
    parser.add_argument("--rolls", type=int, default=2, help="of each container (2)")
    parser.add_argument("--rate", type=float, default=50, help="calls a second meanwhile (50)")
    parser.add_argument("--seconds", type=float, default=120, help="of calls, at the least (120)")
    parser.add_argument("--only", choices=["race", "kills", "rolls"], help="nothing else")
    parser.add_argument("--seed", default="1", help="of the random kills")
    arguments = parser.parse_args()
    wanted = [arguments.only] if arguments.only else ["rolls", "kills", "race"]
    for name in wanted:  # a stack of its own each, so that the books hold one kind of call
        with tempfile.TemporaryDirectory() as folder, replicated(Path(folder), GATEWAY_LAME_DUCK="2") as stack:
            if name == "race":
                asyncio.run(race(stack, arguments.calls))
            elif name == "kills":
                asyncio.run(kills(stack, arguments.kills, ("auth", "proxy", "admin"), arguments.seed))
                asyncio.run(kills(stack, max(1, arguments.kills // 5), ("auth", "proxy", "postgres"), arguments.seed))
            else:
                asyncio.run(rolls(stack, arguments.rolls, arguments.rate, arguments.seconds))
    said("all of it held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
