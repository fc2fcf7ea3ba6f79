"""M11: a token opens until the moment of its expiry and not after it, however that moment was written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import aiohttp
import pytest

from tests.prove.calls import one_call
from tests.prove.desk import Desk
from tests.prove.site import Site
from tests.suite.conftest import RATES
from tests.suite.load import Told, call

RIGHT = 0.1  # seconds around the moment within which either answer is right
AHEAD = 1.0  # seconds before the moment from which calls are made, and after it until which
INDIA, WEST = timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))
REFUSED = "token_expired"


def written(moment: datetime) -> dict[str, str]:
    """One moment in the ways in which people write it. What has no zone is UTC, as the documentation says."""
    summer, winter = (moment.astimezone(timezone(timedelta(hours=hours))) for hours in (2, 1))
    return {
        "Z": moment.isoformat().replace("+00:00", "Z"),
        "+00:00": moment.isoformat(),
        "+05:30": moment.astimezone(INDIA).isoformat(),
        "-08:00": moment.astimezone(WEST).isoformat(),
        "summer time of Berlin": summer.isoformat(),
        "winter time of Berlin": winter.isoformat(),
        "no zone": moment.replace(tzinfo=None).isoformat(),
        "no zone, a space": moment.replace(tzinfo=None).isoformat(sep=" "),
    }


def standing(now: datetime) -> dict[str, tuple[str | None, bool]]:
    """Expiries that are not near: what is written, and whether the token opens now."""
    half = timedelta(minutes=30)
    return {
        "null": (None, True),
        "a date, tomorrow's": (str((now + timedelta(days=1)).date()), True),
        "a date, of the day before yesterday": (str((now - timedelta(days=2)).date()), False),
        "passed, though its wall clock reads later": ((now - half).astimezone(INDIA).isoformat(), False),
        "to come, though its wall clock reads earlier": ((now + half).astimezone(WEST).isoformat(), True),
        "no zone, passed in UTC": ((now - half).replace(tzinfo=None).isoformat(), False),
        "no zone, to come in UTC": ((now + half).replace(tzinfo=None).isoformat(), True),
        "the year 9999": ("9999-12-31T23:59:59Z", True),
        "the year 1": ("0001-01-01", False),
        "no date at all": ("soon", False),
    }


def of_the_night() -> dict[str, datetime]:
    """The hour that comes twice when summer time ends, in Berlin 2030: two moments of one wall clock, with their offsets."""
    first = datetime(2030, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    second = first.replace(fold=1)
    assert (second.astimezone(UTC) - first.astimezone(UTC)) == timedelta(hours=1)
    skipped = datetime(2030, 3, 31, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))  # there is no such time; its offset tells
    return {moment.isoformat(): moment.astimezone(UTC) for moment in (first, second, skipped)}


class Edge:
    """What was seen of one token around its moment: how long after it the last call that passed had begun, and so on."""

    def __init__(self) -> None:
        self.last_passed = self.first_refused = None
        self.odd: list[str] = []
        self.calls = self.near = 0

    def saw(self, told: Told, began: float, ended: float) -> None:
        """A call: seconds from the moment to its start and its end."""
        self.calls += 1
        self.near += RIGHT <= began <= 4 * RIGHT
        if told.status == 200:
            self.last_passed = max(began, self.last_passed if self.last_passed is not None else began)
        elif told.status == 503:
            pass  # not judged: auth is busy, on a slow machine
        elif told.code == REFUSED:
            self.first_refused = min(ended, self.first_refused if self.first_refused is not None else ended)
        else:
            self.odd.append(f"{told.status} {told.code}")


async def _watch(site: Site, tokens: Mapping[str, str], moment: datetime) -> tuple[dict[str, Edge], list[Told]]:
    """Calls each token without a pause from before the moment until after it, doors in turns."""
    edges, everything = {name: Edge() for name in tokens}, []

    def since() -> float:
        return (datetime.now(UTC) - moment).total_seconds()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:

        async def one(name: str, turn: int) -> None:
            await asyncio.sleep(max(0.0, -AHEAD - since()))
            while since() < AHEAD:
                turn, began = turn + 1, since()
                told = await call(
                    session, site.doors[turn % len(site.doors)], tokens[name], model="gpt-test", prompt="tokens:5"
                )
                edges[name].saw(told, began, since())
                everything.append(told)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(one(name, turn) for turn, name in enumerate(tokens)))
    return edges, everything


async def _around_the_moment(site: Site, proof, desk: Desk) -> list[Told]:
    moment = datetime.now(UTC) + timedelta(seconds=8)
    tokens = {f"SQL, {name}": site.token(expires_at=text) for name, text in written(moment).items()}
    for name, text in written(moment).items():
        made = await desk.ask("POST", "/admin/tokens", {"name": f"by HTTP {name}", "expires_at": text})
        if datetime.fromisoformat(made["expires_at"]) != moment:
            proof.holds(f"HTTP, {name}: told back", made["expires_at"], moment.isoformat(), ok=False)
        if name in {"+05:30", "no zone"}:
            tokens[f"HTTP, {name}"] = made["token"]
    never = await desk.ask("POST", "/admin/tokens", {"name": "never", "expires_at": moment.isoformat()})
    await desk.ask("PATCH", f"/admin/tokens/{never['id']}", {"expires_at": None})
    ready = (moment - datetime.now(UTC)).total_seconds()
    proof.at_least("seconds that are left when the last token is made", ready, AHEAD)
    edges, told = await _watch(site, tokens | {"null by HTTP": never["token"]}, moment)
    unlimited = edges.pop("null by HTTP")
    proof.equals("null: refused", (unlimited.first_refused, unlimited.odd), (None, []))
    proof.equals("other answers", [odd for edge in edges.values() for odd in edge.odd][:3], [])
    blind = [name for name, edge in edges.items() if edge.last_passed is None or edge.first_refused is None]
    proof.equals(f"of {len(edges)} tokens not seen on both sides of their moment", blind, [])
    proof.note("calls around the moment", sum(edge.calls for edge in edges.values()))
    seen = [edge for edge in edges.values() if edge.last_passed is not None and edge.first_refused is not None]
    near = sum(edge.near for edge in edges.values())
    proof.at_least("calls that began 0.1 to 0.4 s after it", near, len(edges))
    proof.at_most("seconds after the moment at which a call that passed began", max(edge.last_passed for edge in seen), RIGHT)
    proof.at_least(
        "seconds after it at which a refusal came, at the earliest", min(edge.first_refused for edge in seen), -RIGHT
    )
    return told


@pytest.mark.proves("M11")
async def test_a_token_opens_until_its_moment_and_not_after_it(site, proof):
    """Written by SQL, over HTTP, and by the command line, which is slow to start and so only asked what it understood.

    A call that began before the moment and is judged after it may be either; so calls are compared by their start where they
    passed and by their end where they were refused.
    """
    site = site("auth", "admin", "proxy", is_forked=True)
    async with Desk(site) as desk, aiohttp.ClientSession(trust_env=False) as session:
        told = await _around_the_moment(site, proof, desk)
        now, wrong = datetime.now(UTC), []
        for name, (text, opens) in standing(now).items():
            secrets = {"SQL": site.token(expires_at=text)}
            if text != "soon":
                secrets["HTTP"] = (await desk.ask("POST", "/admin/tokens", {"name": name, "expires_at": text}))["token"]
            for way, secret in secrets.items():
                for door in site.doors:
                    one = await one_call(session, door, secret, model="gpt-test", prompt="tokens:5")
                    told.append(one)
                    # A row by hand whose date cannot be read is switched off when it is taken in.
                    refusals = {REFUSED, "token_disabled"} if text == "soon" else {REFUSED}
                    if (one.status == 200) != opens or (not opens and one.code not in refusals):
                        wrong.append(f"{way}, {name} ({text}): {one.status} {one.code}")
        proof.equals(f"of {len(standing(now))} expiries that are not near, judged wrongly", wrong, [])
        for text, moment in of_the_night().items():
            made = await desk.ask("POST", "/admin/tokens", {"name": text, "expires_at": text})
            proof.equals(f"{text} is", datetime.fromisoformat(made["expires_at"]).isoformat(), moment.isoformat())
        made = json.loads(site.stack.gateway("token", "create", "--expires-at", text, "--json").stdout)
        proof.equals(f"{text} by the command line is", datetime.fromisoformat(made["expires_at"]), moment)
    site.settle(RATES, told)
