"""M4: a call without an output limit, or with a hostile one, locks no money away that other calls could use."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import aiohttp
import pytest

from services.proxy.dialects import openai
from tests.prove.calls import one_call
from tests.prove.site import Site, outcomes
from tests.suite.audit import AGENT, Prices
from tests.suite.load import Told
from tests.suite.stack import price, wait_for

TENTH = Prices(output="100.00")
CEILING = 1_000  # tokens; of `mock-ceiling`
PRICE = price("mock-ceiling", input="0", output="100.00", max_output_tokens=CEILING)
ROUTES = {openai.CHAT: openai.LIMITS}
"""Each route on which models write, with the names that its output limit has."""
HOSTILE = [0, -1, 1.5, "5", None, 10**12, 10**13, 10**30, -(10**30), True, [5], {"tokens": 5}, 1e300, "0x10", ""]
DOLLAR = 1_000_000_000


async def _without_a_limit(site: Site, proof) -> list[Told]:
    """One after another until the last cent. Each costs a cent and would hold 41 where that much is left.

    One caller has one connection, so one door. The second half of the calls comes from another caller at the last door, who
    begins when what the first one did is booked: until then its holds are those of a call in flight.
    """
    count = proof.size(100, 20)
    token = site.token(max_amount=count / 100)
    told: list[Told] = []
    with site.watched():
        for door, half in ((site.doors[0], count // 2), (site.doors[-1], count - count // 2)):
            async with aiohttp.ClientSession(trust_env=False) as session:
                told += [await one_call(session, door, token, model="tenth", prompt="tokens:100") for _ in range(half)]
            await asyncio.to_thread(wait_for, "all is booked", lambda: site.row(token)["open_calls"] == 0)
    proof.equals(f"passed of {count} one after another", sum(one.whole for one in told), count)
    proof.only("outcomes", outcomes(told), {"200"})
    row = site.row(token)
    proof.equals("left of the budget, in nano-dollars", row["max_amount_nanos"] - row["period_spent_nanos"], 0)
    return told


async def _posted(session: aiohttp.ClientSession, url: str, token: str, body: dict[str, Any]) -> tuple[int, str]:
    """Status and text, or code, of a call with these members."""
    nonce = uuid.uuid4().hex
    body = {"messages": [{"role": "user", "content": f"nonce:{nonce} tokens:20 seconds:0.3"}], **body}
    headers = {"Authorization": f"Bearer {token}", "User-Agent": AGENT + nonce}
    async with session.post(url, data=json.dumps(body), headers=headers) as response:
        text = await response.text()
        return response.status, nonce if response.status == 200 else json.loads(text)["error"]["code"]


async def _hostile(site: Site, session: aiohttp.ClientSession, door: str, route: str, body: dict[str, Any]) -> str:
    """One hostile call on a token of its own while another token has a call open; what is wrong with what came of it."""
    token = site.token(max_amount=1)
    limits = ROUTES[route]
    status, told = 503, ""
    while status == 503:  # auth is away or busy, on a slow machine; the test's own limit of time ends it
        status, told = await _posted(session, door.removesuffix("/v1") + route, token, body)
    values = {name: body[name] for name in limits if name in body}
    if all(value is None for value in values.values()) or all(type(value) is int and value > 0 for value in values.values()):
        expected = {200}
    else:
        expected = {400}
    if status not in expected:
        return f"{body}: {status} {told}, expected {expected}"
    if status != 200:
        return "" if told == "invalid_request" else f"{body}: {status} {told}"
    [row] = site.stack.query("SELECT held_nanos, granted_max_output_tokens FROM requests WHERE user_agent = ?", AGENT + told)
    if not 0 < row["held_nanos"] <= DOLLAR // 2:
        return f"{body}: holds {row['held_nanos']} of {DOLLAR}"
    if body["model"] == "mock-ceiling" and row["held_nanos"] > CEILING * 100_000:
        return f"{body}: holds {row['held_nanos']}, and its model writes for {CEILING * 100_000} at the most"
    [sent] = [one for one in site.provider.calls() if one.nonce == told]
    asked = [value for name, value in json.loads(sent.body).items() if name in limits and value is not None]
    granted = row["held_nanos"] // 100_000
    if any(value > granted for value in asked):
        return f"{body}: {asked} went upstream and {granted} tokens are held"
    if not asked and body["model"] != "mock-ceiling":
        return f"{body}: went upstream without a limit, though nobody knows what its model can write"
    return ""


@pytest.mark.proves("M4")
async def test_neither_no_limit_nor_a_hostile_one_locks_money_away(site, proof):
    """Hostile: each value under each name, plain and streamed, on a token of its own with $1.00, beside another one's call."""
    site = site("auth", "proxy", prices=PRICE, is_forked=True)
    told = await _without_a_limit(site, proof)
    bodies = []
    for route, names in ROUTES.items():
        for model in ("mock-ceiling", "tenth"):
            for stream in (False, True):
                for value in HOSTILE:
                    bodies += [(route, {"model": model, "stream": stream, name: value}) for name in names]
                bodies.append((route, {"model": model, "stream": stream, **dict.fromkeys(names, 10**12)}))
                bodies.append((route, {"model": model, "stream": stream, **dict(zip(names, (5, -1), strict=True))}))
    bodies = proof.chance.sample(bodies, proof.size(len(bodies), 40))
    other = site.token(max_amount=1)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
        open_call = asyncio.create_task(
            one_call(session, site.doors[0], other, model="tenth", prompt="tokens:100 seconds:3", max_tokens=500)
        )
        await asyncio.to_thread(wait_for, "the other token's call is open", lambda: site.row(other)["open_calls"] == 1)
        at_once = asyncio.Semaphore(8)

        async def one(number: int) -> str:
            async with at_once:
                route, body = bodies[number]
                return await _hostile(site, session, site.doors[number % len(site.doors)], route, body)

        with site.watched():
            wrong = [fault for fault in await asyncio.gather(*(one(number) for number in range(len(bodies)))) if fault]
        # While the largest limit runs, another call of the same token finds money.
        token = site.token(max_amount=1)
        largest = asyncio.create_task(
            one_call(session, site.doors[0], token, model="tenth", prompt="tokens:100 seconds:1", max_tokens=10**12)
        )
        await asyncio.to_thread(wait_for, "the largest is open", lambda: site.row(token)["open_calls"] == 1)
        proof.at_most("held by a call with max_tokens 10^12, of $1.00", site.row(token)["held_nanos"] / DOLLAR, 0.5)
        beside = await one_call(session, site.doors[-1], token, model="tenth", prompt="tokens:100", max_tokens=500)
        proof.equals("beside it another call gets", (beside.status, (await largest).status), (200, 200))
        proof.equals("the other token's call ends", (await open_call).whole, True)
    proof.note("hostile calls", len(bodies))
    proof.equals("hostile calls that were not refused, clamped or held as they should", wrong[:5], [])
    site.settle(TENTH, [*told, beside])
