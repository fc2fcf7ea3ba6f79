"""C20: the clock of one host is wrong for a while, and begins and ends nothing that it should not."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.prove.site import outcomes
from tests.prove.test_clock import DAY, HOUR, ShiftedClock, compiled, older
from tests.suite.conftest import ADMIN_PASSWORD, CENT
from tests.suite.load import calls
from tests.suite.stack import wait_for

AHEAD = 40 * DAY
SECONDS = 4.0


@pytest.mark.proves("C20")
async def test_an_auth_that_is_days_ahead_for_a_moment_begins_no_period(site, proof, tmp_path):
    site = site(ready=False)
    clock = ShiftedClock(compiled(tmp_path), tmp_path / "clock")
    older(site, clock, days=3)
    for name in site.all_of("auth"):
        site.stack.own[name] = clock.environment
    site.stack.start(*site.all_of("auth"), *site.all_of("proxy"))
    site.stack.wait_until_ready(60)
    token = site.token(max_amount="0.10", budget_period="daily")
    async with site.door() as door:
        before = await calls(door, token, 5, at_once=1, model="cent")
        await asyncio.to_thread(wait_for, "they are settled", lambda: site.row(token)["open_calls"] == 0)
        started = site.row(token)["period_start"]
        clock.set(AHEAD)
        ahead = await calls(door, token, 8, at_once=1, model="cent")
        await asyncio.sleep(SECONDS)
        clock.set(0)
        after = await calls(door, token, 5, at_once=1, model="cent")
        await asyncio.to_thread(wait_for, "they are settled", lambda: site.row(token)["open_calls"] == 0)
    told = [*before, *ahead, *after]
    proof.equals("calls of one cent that passed on $0.10 a day", sum(one.whole for one in told), 10)
    proof.only("outcomes", outcomes(told), {"200", "402 insufficient_quota", "402 request_exceeds_budget"})
    row = site.row(token)
    proof.equals("the period", row["period_start"], started)
    proof.equals("spent in it, in nano-dollars", row["period_spent_nanos"], 100_000_000)
    site.settle(CENT, told)


@pytest.mark.proves("C20")
async def test_a_session_of_a_wrong_clock_is_refused_and_an_ended_one_stays_ended(site, proof, tmp_path):
    site = site(ready=False)
    clock = ShiftedClock(compiled(tmp_path), tmp_path / "clock")
    older(site, clock, days=3)
    site.stack.own["admin"] = clock.environment
    clock.set(2 * DAY)
    site.stack.start(*site.all_of("auth"), "admin", *site.all_of("proxy"))
    site.stack.wait_until_ready(60)
    async with aiohttp.ClientSession(trust_env=False) as session:
        base = site.stack.base_url.removesuffix("/v1")

        async def login() -> str:
            body = {"username": "admin", "password": ADMIN_PASSWORD}
            async with session.post(f"{base}/auth/login", json=body) as answer:
                return str((await answer.json()).get("session_token"))

        async def status(secret: str) -> int:
            async with session.get(f"{base}/admin/tokens", headers={"Authorization": f"Bearer {secret}"}) as answer:
                return answer.status

        async def restarted(seconds: float) -> None:
            """admin, started anew with a clock that is so far ahead: no running process is there that could tell."""
            site.stack.kill("admin")
            clock.set(seconds)
            site.stack.start("admin")
            await asyncio.to_thread(wait_for, "admin answers", lambda: site.stack.listens(site.stack.admin_port), 30)
            await asyncio.sleep(2.5)  # the proxy connects again, and admin has looked once

        wrong = await login()
        proof.equals("a session of a clock 2 days ahead, by that clock", await status(wrong), 200)
        await restarted(0)
        proof.equals("the same when the clock is right", await status(wrong), 401)
        right = await login()
        proof.equals("a new session", await status(right), 200)
        await restarted(2 * DAY + 120)
        proof.equals("the wrong one when its time has come", await status(wrong), 401)
        proof.equals("one that has expired by then", await status(right), 401)
        await restarted(-HOUR)
        proof.equals("the expired one after the clock was set back", await status(right), 401)
        await restarted(0)
        proof.equals("a new session when all is well", await status(await login()), 200)
