"""Two proxies and two auths over one database: no call notices that one goes and comes. Races and kills: `tests/prove`."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

import pytest

from tests.fakes.balancer import Balancer
from tests.suite.audit import audit, open_holds
from tests.suite.conftest import RATES, Installation, Installer
from tests.suite.load import Told, paced_calls
from tests.suite.stack import wait_for

ROLL_RATE = float(os.environ.get("GATEWAY_TEST_ROLL_RATE", "20"))  # calls a second; the full run: 50
ROLL_SECONDS = float(os.environ.get("GATEWAY_TEST_ROLL_SECONDS", "0"))  # at the least; the full run: 120
ROLLS = int(os.environ.get("GATEWAY_TEST_ROLLS", "1"))  # of each service; the full run: 2
FOUR = ("auth", "auth-2", "proxy", "proxy-2")
DATABASES = os.environ.get("GATEWAY_TEST_DATABASES", "").split(",")  # "sqlite,postgres": each test on both


def over(*databases: str) -> pytest.MarkDecorator:
    """The databases of a test: one replicates over PostgreSQL, as a rule; two processes can share an SQLite file too."""
    return pytest.mark.parametrize("replicated", [one for one in DATABASES if one] or databases, indirect=True)


@pytest.fixture
def replicated(request: pytest.FixtureRequest) -> Installer:
    """Makes installations with two of auth and of proxy: `replicated("auth", "auth-2", "proxy")`."""
    make = request.getfixturevalue({"sqlite": "fresh", "postgres": "postgres"}[request.param])
    return lambda *services, **options: make(*services, replicas=2, **options)


def outcome(told: list[Told]) -> Counter[str]:
    return Counter(f"{one.status} {one.code}" for one in told)


def both(suite: Installation) -> list[int]:
    return [suite.stack.ports["proxy"], suite.stack.ports["proxy-2"]]


def books_are_right(suite: Installation, rates, told: list[Told], *, seconds: float = 15) -> None:
    wait_for("no hold is open", lambda: open_holds(suite.stack.database) == 0, seconds=seconds)
    answered = {one.nonce for one in told if one.whole}
    findings = audit(suite.stack.database, suite.provider.ledger, rates, answered=answered)
    print(outcome(told), findings)  # shown by `pytest -rP`
    assert findings.problems == [], f"{findings}\n{suite.stack.log_tails()}"
    assert findings.unreported == 0
    assert suite.stack.gateway("reconcile").stdout.strip().endswith("0 differences")


@over("sqlite")
@pytest.mark.timeout(300)
async def test_one_auth_of_two_that_is_killed_costs_no_call(replicated):
    suite = replicated(*FOUR)
    token = suite.token(max_amount=1000)
    over = False

    async def nemesis() -> None:
        nonlocal over
        for turn in range(2):
            victim = ("auth", "auth-2")[turn]
            await asyncio.sleep(1)
            suite.stack.kill(victim)
            await asyncio.sleep(1)
            suite.stack.start(victim)
            await asyncio.to_thread(wait_for, "it is back", lambda name=victim: suite.stack.is_ready(name))
            await asyncio.sleep(1)
        over = True

    async with Balancer(both(suite)) as balancer:
        told, _ = await asyncio.gather(
            paced_calls(
                balancer.base_url, token, a_second=ROLL_RATE, until=lambda: over, model="gpt-test", prompt="unique:1 tokens:5"
            ),
            nemesis(),
        )
    assert outcome(told) == {"200 ": len(told)}
    assert all(one.whole for one in told)
    assert max(one.seconds for one in told) < 1.5
    books_are_right(suite, RATES, told)


@over("postgres")
async def test_one_auth_of_two_that_stands_still_is_gone_around(replicated):
    """Where it stops in the middle of a transaction, the database frees its rows after two seconds."""
    suite = replicated(*FOUR)
    token = suite.token(max_amount=1000)

    async def load(seconds: float) -> list[Told]:
        ends = asyncio.get_running_loop().time() + seconds
        return await paced_calls(
            suite.stack.base_url,
            token,
            a_second=ROLL_RATE,
            until=lambda: asyncio.get_running_loop().time() > ends,
            model="gpt-test",
            prompt="unique:1 tokens:5",
        )

    assert set(outcome(await load(1))) == {"200 "}
    suite.stack.pause("auth")
    told = await load(3)
    assert set(outcome(told)) <= {"200 ", "503 auth_unavailable"}
    told += await load(2)
    assert set(outcome(told[-int(1.5 * ROLL_RATE) :])) == {"200 "}, outcome(told)
    suite.stack.go_on("auth")
    told += await load(1)
    assert set(outcome(told[-int(0.5 * ROLL_RATE) :])) == {"200 "}, outcome(told)
    books_are_right(suite, RATES, told)


@over("postgres")
@pytest.mark.timeout(300 + 120 * ROLLS)
async def test_all_four_are_restarted_one_after_the_other_and_every_call_succeeds(replicated):
    suite = replicated(*FOUR, GATEWAY_LAME_DUCK="1")
    token = suite.token(max_amount=1000)
    codes: list[int] = []
    started = asyncio.get_running_loop().time()
    rolled = False

    async def roll() -> None:
        nonlocal rolled
        for name in FOUR * ROLLS:
            await asyncio.sleep(0.5)
            codes.append(await asyncio.to_thread(suite.stack.stop, name))
            suite.stack.start(name)
            await asyncio.to_thread(wait_for, f"{name} is ready", lambda name=name: suite.stack.is_ready(name))
        rolled = True

    def over() -> bool:
        return rolled and asyncio.get_running_loop().time() - started >= ROLL_SECONDS

    async with Balancer(both(suite)) as balancer:
        told, _ = await asyncio.gather(
            paced_calls(
                balancer.base_url,
                token,
                a_second=ROLL_RATE,
                until=over,
                model="gpt-test",
                prompt="unique:1 tokens:10 seconds:0.3",
            ),
            roll(),
        )
    assert codes == [0] * (4 * ROLLS)
    assert outcome(told) == {"200 ": len(told)}, [one for one in told if one.status != 200][:3]
    assert all(one.whole for one in told)
    books_are_right(suite, RATES, told)
