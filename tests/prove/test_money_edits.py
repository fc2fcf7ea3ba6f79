"""M7: what an administrator changes binds the next call, and every call that is open is charged whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

import aiohttp
import pytest

from tests.prove.calls import one_call
from tests.prove.desk import Desk
from tests.prove.site import Site, outcomes
from tests.suite.conftest import RATES
from tests.suite.load import Told
from tests.suite.stack import wait_for

DEAR = "prompt:99000 tokens:10"  # nearly ten cents
QUICK = "prompt:10 tokens:5"


class Edited:
    """One token, its open calls, and new calls on every door after each edit."""

    def __init__(self, site: Site, proof, session: aiohttp.ClientSession, secret: str, streams: int) -> None:
        self.site, self.proof, self._session, self._secret, self._streams = site, proof, session, secret, streams
        self.told: list[Told] = []
        self.fewest_open = 10**9

    def call(self, door: str, prompt: str, *, stream: bool = False) -> asyncio.Task[Told]:
        made = one_call(self._session, door, self._secret, model="gpt-test", prompt=prompt, stream=stream)
        return asyncio.create_task(made)

    def open_calls(self) -> int:
        [row] = self.site.stack.query("SELECT COUNT(*) AS open FROM requests WHERE state = 'admitted' AND stream = 1")
        return int(row["open"])

    async def binds(self, edit: str, expected: Collection[str]) -> None:
        """Calls on every door from the moment of the administrator's reply: how long the old rule still held."""
        replied, late = time.monotonic(), 0.0
        self.fewest_open = min(self.fewest_open, self.open_calls())
        for _ in range(self.proof.size(3, 2)):
            began = time.monotonic()
            told = await asyncio.gather(*(self.call(door, QUICK) for door in self.site.doors))
            if not set(outcomes(told)) <= set(expected):
                late = began - replied + 0.001
            self.told += told
        self.proof.within(f"{edit}: until when a new call began that went by the old rule", late, 1.0)
        self.proof.only(f"{edit}: new calls on every door then", outcomes(told), expected)


@pytest.mark.proves("M7")
async def test_edits_bind_new_calls_at_once_and_open_calls_settle_whole(site, proof):
    """Through the HTTP door of admin. `Reset` is what gives a spent budget back here: a correction by all that was spent."""
    site = site("auth", "admin", "proxy", is_forked=True)
    count, seconds = proof.size(200), proof.size(25, 8)
    connector = aiohttp.TCPConnector(limit=0)
    async with Desk(site) as desk, aiohttp.ClientSession(connector=connector, trust_env=False) as session:
        made = await desk.ask("POST", "/admin/tokens", {"name": "before", "max_amount": 50})
        path = f"/admin/tokens/{made['id']}"
        edited = Edited(site, proof, session, made["token"], count)
        doors = site.doors
        edited.told += await asyncio.gather(*(edited.call(doors[n % len(doors)], DEAR) for n in range(max(4, count // 5))))
        await asyncio.to_thread(wait_for, "they are booked", lambda: site.row("before")["open_calls"] == 0)
        prompt = f"prompt:5000 tokens:20 chunks:20 seconds:{seconds}"
        streams = [edited.call(doors[n % len(doors)], prompt, stream=True) for n in range(count)]
        await asyncio.to_thread(wait_for, "the streams are open", lambda: edited.open_calls() == count)

        renamed = await desk.ask("PATCH", path, {"name": "after"})
        await edited.binds("renamed", {"200"})
        spent = renamed["amount_spent"]
        await desk.ask("PATCH", path, {"max_amount": round(spent - 0.01, 2)})
        await edited.binds("max_amount lowered below what is spent", {"402 insufficient_quota"})
        given = (await desk.ask("GET", path))["amount_spent"]
        await desk.ask("POST", f"{path}/adjustments", {"amount": -given, "reason": "the proof gives it back"})
        await edited.binds("reset by a correction", {"200"})
        await desk.ask("PATCH", path, {"max_amount": 0})
        await edited.binds("max_amount 0", {"402 insufficient_quota"})
        await desk.ask("POST", f"{path}/topup", {"amount": 50})
        await edited.binds("topped up", {"200"})
        await desk.ask("POST", f"{path}/toggle", {"enabled": False})
        await edited.binds("disabled", {"401 token_disabled"})
        await desk.ask("POST", f"{path}/toggle", {"enabled": True})
        await edited.binds("enabled", {"200"})
        await desk.ask("DELETE", path)
        await edited.binds("deleted", {"401 invalid_api_key"})
        proof.at_least("streams open at every edit", edited.fewest_open, count)

        ended = await asyncio.gather(*streams)
        proof.equals(f"of {count} open streams came to their end", sum(one.whole for one in ended), count)
        edited.told += ended
        site.settle(RATES, edited.told)
        # Without those that were admitted too late for their caller, who came again.
        log = [entry for entry in await desk.log(made["id"]) if entry["error_code"] != "not_sent"]
        passed = [one for one in edited.told if one.status == 200]
        proof.equals("calls in the log after the deletion, of those that passed", len(log), len(passed))
        proof.equals("by the token's name", {entry["token_name"] for entry in log}, {"after"})
        proof.equals("their states", {(entry["state"], entry["source"]) for entry in log}, {("settled", "provider")})
        await edited.binds("deleted, a while ago", {"401 invalid_api_key"})
    row = site.row("after")
    proof.equals("held after all", (row["held_nanos"], row["open_calls"]), (0, 0))
