"""C3: admin is killed in the middle of changes: what it acknowledged is there, and the rest is whole or not there at all."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.prove.nemesis import Nemesis
from tests.prove.proof import FULL
from tests.prove.site import Site, outcomes
from tests.prove.traffic import Traffic
from tests.suite.conftest import ADMIN_PASSWORD, RATES

AT_ONCE = 5  # changes that run when admin is killed
DOLLAR = 10**9
Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of change of a token.

    applied: whether a token is as the change leaves it. Called with the row as it was, and as it is.
    untouched: whether it is as it was before. A token that is neither is torn.
    """

    method: str
    path: str
    body: Callable[[int], Row | None]
    applied: Callable[[Row, Row, int], bool]
    untouched: Callable[[Row, Row], bool]
    repeatable: bool = False


def same(*columns: str) -> Callable[[Row, Row], bool]:
    return lambda was, now: all(was[column] == now[column] for column in columns)


KINDS = {
    "update": Kind(
        "PATCH",
        "",
        lambda number: {"max_amount": 100 + number, "remark": f"change {number}"},
        lambda was, now, number: (now["max_amount_nanos"], now["remark"]) == ((100 + number) * DOLLAR, f"change {number}"),
        same("max_amount_nanos", "remark", "version"),
    ),
    "topup": Kind(
        "POST",
        "/topup",
        lambda number: {"amount": 3, "request_id": str(uuid.uuid4())},
        lambda was, now, number: now["max_amount_nanos"] == was["max_amount_nanos"] + 3 * DOLLAR,
        same("max_amount_nanos", "version"),
        repeatable=True,
    ),
    "rotate": Kind(
        "POST",
        "/rotate",
        lambda number: {"request_id": str(uuid.uuid4())},
        lambda was, now, number: now["token_hash"] != was["token_hash"] and now["display_hint"] != was["display_hint"],
        same("token_hash", "display_hint", "version"),
        repeatable=True,
    ),
    "correct": Kind(
        "POST",
        "/adjustments",
        lambda number: {"amount": 2, "reason": f"change {number}", "request_id": str(uuid.uuid4())},
        lambda was, now, number: now["total_spent_nanos"] == was["total_spent_nanos"] + 2 * DOLLAR and now["adjusted"] == 1,
        lambda was, now: now["total_spent_nanos"] == was["total_spent_nanos"] and now["adjusted"] == 0,
        repeatable=True,
    ),
    "delete": Kind(
        "DELETE", "", lambda number: None, lambda was, now, number: now["deleted_at"] is not None, same("deleted_at", "version")
    ),
}


@dataclass
class Change:
    """One change: what was asked, and what was told. ids: of its tries, as the audit names them."""

    number: int
    kind: str
    path: str
    body: Row | None
    was: Row = field(default_factory=dict)
    status: int = 0
    answer: Row = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)

    @property
    def acknowledged(self) -> bool:
        return self.status in {200, 201, 204}

    def __str__(self) -> str:
        """For a person: without the rows, which are long."""
        return f"{self.kind} {self.number}, told {self.status}, requests {' '.join(self.ids)}"


class Office:
    """An administrator at work over HTTP."""

    def __init__(self, site: Site, http: aiohttp.ClientSession) -> None:
        self._site, self._http = site, http
        self._base = f"http://127.0.0.1:{site.stack.http_port}"
        self._session = ""

    async def log_in(self) -> None:
        async with self._http.post(
            f"{self._base}/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD}
        ) as response:
            self._session = (await response.json())["session_token"]

    async def make(self, change: Change) -> None:
        """Tries it once."""
        method = "POST" if change.kind == "create" else KINDS[change.kind].method
        headers = {"Authorization": f"Bearer {self._session}"}
        async with self._http.request(method, self._base + change.path, json=change.body, headers=headers) as response:
            change.status, text = response.status, await response.text()
            change.ids.append(response.headers["x-request-id"])
            change.answer = json.loads(text) if text else {}

    def rows(self) -> dict[str, Row]:
        """All tokens by name, deleted ones too, with how often each was corrected."""
        rows = self._site.stack.query(
            "SELECT t.*, (SELECT COUNT(*) FROM adjustments a WHERE a.token_id = t.id) AS adjusted FROM client_tokens t"
        )
        return {str(row["name"]): row for row in rows}

    def state(self, change: Change, rows: dict[str, Row]) -> str:
        """`whole`, `none` or `torn`."""
        if change.kind == "create":
            assert change.body is not None
            row = rows.get(change.body["name"])
            if row is None:
                return "none"
            return "whole" if row["token_hash"] and row["max_amount_nanos"] == change.number * DOLLAR else "torn"
        kind, row = KINDS[change.kind], rows[change.was["name"]]
        if kind.applied(change.was, row, change.number):
            return "whole"
        return "none" if kind.untouched(change.was, row) else "torn"


async def plan(office: Office, count: int, chance: Any) -> list[Change]:
    """So many changes, each of a token of its own, which is made here."""
    changes = []
    for number in range(1, count + 1):
        kind = chance.choice(["create", *KINDS])
        if kind == "create":
            body = {"name": f"new {number}", "max_amount": number, "request_id": str(uuid.uuid4())}
            changes.append(Change(number, kind, "/admin/tokens", body))
            continue
        made = Change(number, "create", "/admin/tokens", {"name": f"old {number}", "max_amount": 5})
        await office.make(made)
        assert made.acknowledged, made
        path = f"/admin/tokens/{made.answer['id']}{KINDS[kind].path}"
        changes.append(Change(number, kind, path, KINDS[kind].body(number)))
    rows = office.rows()
    for change in changes:
        change.was = rows.get(f"old {change.number}", {})
    return changes


@pytest.mark.proves("C3")
async def test_changes_in_the_middle_of_which_admin_is_killed_are_whole_or_were_not_made(site, proof):
    site = site("auth", "proxy", "admin", is_forked=True)
    nemesis = Nemesis(site.stack, proof.chance)
    kills = proof.size(100)
    over = False
    async with aiohttp.ClientSession(trust_env=False) as http, site.door() as door:
        office = Office(site, http)
        await office.log_in()
        changes = await plan(office, AT_ONCE * kills, proof.chance)
        traffic = Traffic(door, site.token(max_amount=1000), at_once=4)
        load = asyncio.create_task(traffic.run(lambda: over))
        for first in range(0, len(changes), AT_ONCE):
            running = [asyncio.create_task(office.make(change)) for change in changes[first : first + AT_ONCE]]
            # In the middle of them, however fast the machine is: after some were told, and a little.
            some = proof.chance.randrange(AT_ONCE)
            while sum(one.done() for one in running) < some:
                await asyncio.wait([one for one in running if not one.done()], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(proof.chance.uniform(0, 0.01))
            await nemesis.kill("admin")
            await nemesis.start("admin")
            await asyncio.gather(*running)
        over = True
        await load
        nemesis.tell(proof)
        proof.equals("changes, kill -9 of admin", (len(changes), nemesis.counts["kill -9 admin"]), (AT_ONCE * kills, kills))
        proof.only("what administrators were told", Counter(change.status for change in changes), {200, 201, 503})
        compare(site, proof, office, changes, "after the kills")

        lost = [change for change in changes if not change.acknowledged]
        again = [change for change in changes if change.kind == "create" or KINDS[change.kind].repeatable]
        proof.at_least("changes whose acknowledgement was lost", len(lost), 1)
        for change in again:
            await office.make(change)
        proof.only("repeated under their request_id: told", Counter(change.status for change in again), {200, 201})
        compare(site, proof, office, changes, "after the repetition")
        for change in changes:
            if change.kind == "rotate" and (secret := change.answer.get("token")):
                change.status = (await patiently(http, f"{door}/models", secret)).status
        rotated = [change.status for change in changes if change.kind == "rotate"]
        proof.only("calls with the secrets of rotations", Counter(rotated), {200})
    # A tenth is run beside other tests, where an auth may take longer to answer than a proxy waits.
    proof.only("calls of models meanwhile", outcomes(traffic.told), {"200"} if FULL else {"200", "503 auth_unavailable"})
    proof.at_least("of them answered in full", traffic.whole, 0.9 * len(traffic.told))
    site.settle(RATES, traffic.told)


async def patiently(http: aiohttp.ClientSession, url: str, secret: str) -> aiohttp.ClientResponse:
    """A GET that is made again for some seconds where a busy machine answers 503."""
    for _ in range(20):
        async with http.get(url, headers={"Authorization": f"Bearer {secret}"}) as response:
            if response.status != 503:
                break
        await asyncio.sleep(0.25)
    return response


def compare(site: Site, proof: Any, office: Office, changes: list[Change], when: str) -> None:
    """Holds what was told against what is there, and against the audit."""
    rows = office.rows()
    records = Counter(
        str(row["request_id"]) for row in site.stack.query("SELECT request_id FROM audit WHERE action LIKE 'token.%'")
    )
    found = {change.number: office.state(change, rows) for change in changes}
    kinds = Counter(f"{change.kind} {found[change.number]}" for change in changes)
    proof.note(f"{when}: changes", dict(sorted(kinds.items())))
    torn = [change for change in changes if found[change.number] == "torn"]
    proof.equals(f"{when}: torn changes", [str(change) for change in torn[:2]], [])
    missing = [change for change in changes if change.acknowledged and found[change.number] != "whole"]
    proof.equals(f"{when}: acknowledged and not there", [str(change) for change in missing[:2]], [])
    silent = sum(not change.acknowledged and found[change.number] == "whole" for change in changes)
    proof.note(f"{when}: made, and nobody was told", silent)
    told = {change.number: sum(records[one] for one in change.ids) for change in changes}
    wrong = [change for change in changes if told[change.number] != (found[change.number] == "whole")]
    proof.equals(
        f"{when}: changes without exactly one audit record, or records without a change",
        [str(change) for change in wrong[:2]],
        [],
    )
