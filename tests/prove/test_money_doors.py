"""M9: nothing goes upstream but through a door with a meter. Every route of the edge is tried; a new one needs a case here."""

from __future__ import annotations

import json
import string
from collections import Counter
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc.aio
import pytest
from yarl import URL

from services.proxy import routes
from services.proxy.admin_http import AdminRoutes
from services.proxy.routes import Table
from tests.prove.calls import insist
from tests.prove.desk import Desk
from tests.prove.site import Site, outcomes
from tests.proxy.edge_harness import running_edge
from tests.suite.conftest import ADMIN_PASSWORD, RATES
from tests.suite.load import Told
from tests.suite.stack import price, wait_for

PRICES = price("mock-free", input="0", output="0") + price("mock-half-priced", input="1.00")
NOWHERE = 10**9  # the id of nothing
CHAT: dict[str, Any] = {"model": "gpt-test", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}


@dataclass(frozen=True)
class Case:
    """How a door that has no model behind it is tried: statuses that it may answer a whole call with."""

    statuses: frozenset[int]
    by: str = "token"
    """The credential: a client `token`, an administrator's `session`, or one `own` session that the door may end."""
    body: Any = None
    path: str = ""
    """What stands for the route's pattern."""


def _case(*statuses: int, **fields: Any) -> Case:
    return Case(frozenset(statuses), **fields)


LOGIN = {"username": "admin", "password": ADMIN_PASSWORD}
TOKEN = f"/admin/tokens/{NOWHERE}"
CASES: dict[tuple[str, str], Case] = {
    ("GET", routes.MODELS): _case(200),
    ("GET", routes.MODELS + "/{id}"): _case(200, path=routes.MODELS + "/gpt-test"),
    ("GET", routes.TOKEN_USAGE): _case(200),
    ("GET", routes.TOKEN_BALANCE): _case(200),
    ("GET", routes.DESCRIPTION): _case(200),
    ("GET", routes.HEALTH): _case(200),
    ("HEAD", routes.HEALTH): _case(200),
    ("GET", routes.READINESS): _case(200),
    ("HEAD", routes.READINESS): _case(200),
    ("HEAD", routes.ROOT): _case(200),
    ("POST", "/auth/login"): _case(400, by="session", body=LOGIN | {"model": "gpt-test"}),
    ("POST", "/auth/logout"): _case(200, 401, by="own"),
    ("GET", "/auth/session"): _case(200, by="session"),
    ("POST", "/auth/password"): _case(400, by="session", body=CHAT),
    ("GET", "/admin/tokens"): _case(200, by="session"),
    ("POST", "/admin/tokens"): _case(400, by="session", body=CHAT),
    ("GET", "/admin/tokens/*"): _case(404, by="session", path=TOKEN),
    ("PATCH", "/admin/tokens/*"): _case(400, by="session", body=CHAT, path=TOKEN),
    ("DELETE", "/admin/tokens/*"): _case(404, by="session", path=TOKEN),
    ("POST", "/admin/tokens/*/toggle"): _case(404, by="session", path=f"{TOKEN}/toggle"),
    ("POST", "/admin/tokens/*/rotate"): _case(404, by="session", path=f"{TOKEN}/rotate"),
    ("POST", "/admin/tokens/*/topup"): _case(404, by="session", body={"amount": 5}, path=f"{TOKEN}/topup"),
    ("GET", "/admin/tokens/*/adjustments"): _case(404, by="session", path=f"{TOKEN}/adjustments"),
    ("POST", "/admin/tokens/*/adjustments"): _case(
        404, by="session", body={"amount": 1, "reason": "none"}, path=f"{TOKEN}/adjustments"
    ),
    ("GET", "/admin/prices"): _case(200, by="session"),
    ("POST", "/admin/prices"): _case(400, by="session", body=CHAT),
    ("DELETE", "/admin/prices/*"): _case(404, by="session", path=f"/admin/prices/{NOWHERE}"),
    ("GET", "/admin/logs/requests"): _case(200, by="session"),
    ("GET", "/admin/logs/requests/*"): _case(404, by="session", path="/admin/logs/requests/x"),
    ("GET", "/admin/usage/customers"): _case(200, by="session"),
    ("GET", "/admin/audit"): _case(200, by="session"),
    ("GET", "/admin/sessions"): _case(200, by="session"),
    ("DELETE", "/admin/sessions/*"): _case(404, by="session", path="/admin/sessions/x"),
}
"""Each door that has no model behind it. Those that have: `METERED`."""
METERED = {("POST", routes.CHAT)}
NO_ROUTES = """
    completions responses responses/resp_1 responses/resp_1/cancel embeddings moderations images/generations images/edits
    images/variations audio/speech audio/transcriptions audio/translations files files/file_1/content batches assistants
    threads threads/runs threads/t_1/runs realtime realtime/sessions rerank messages messages/count_tokens fine_tuning/jobs
    vector_stores uploads evals containers videos engines engines/gpt-test/completions edits complete generate tokenize
    chat chat/completions/ chat/completions/x chat/completions/chatcmpl-1 token token/usage/x organization/costs
""".split()  # noqa: SIM905 - a list of words is easier to read as words
TRICKS = [
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/chat/completions/",
    "/V1/chat/completions",
    "/v1/chat/%63ompletions",
    "/v1/./chat/completions",
    "/v1/models/../chat/completions",
    "/v1/models/%2e%2e/chat/completions",
    "/v1/chat/completions;x=1",
    "/v1beta/models/gpt-test:generateContent",
    "/openai/v1/chat/completions",
    "/chat/completions",
]


async def doors_of_the_edge() -> set[tuple[str, str]]:
    """Each method and path that the edge's own tables have."""
    async with running_edge() as edge:
        table = edge.app._table
        kinds = set(vars(Table({})))
        assert kinds == {"_exact", "_model", "_admin"}, "the table has a new kind of route, which needs cases here"
        found = {(method, path) for path, methods in table._exact.items() for method in methods}
        found |= {(method, routes.MODELS + "/{id}") for method in table._model or {}}
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        admin = AdminRoutes(channel=channel)
        return found | {(method, path) for path, methods in admin._routes.items() for method in methods}


class Knocker:
    """Makes calls of any kind and says what came of them."""

    def __init__(self, site: Site, http: aiohttp.ClientSession) -> None:
        self._site, self._http = site, http
        self._turn = 0

    async def knock(self, method: str, path: str, secret: str, body: Any) -> int:
        """The status; doors take turns."""
        self._turn += 1
        root = self._site.doors[self._turn % len(self._site.doors)].removesuffix("/v1")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        url = URL(root + path, encoded=True)
        async with self._http.request(method, url, data=data, headers=headers, allow_redirects=False) as answer:
            await answer.read()
            return answer.status

    def books(self) -> tuple[int, int]:
        """Calls upstream so far, and rows; without those that were admitted too late for their caller, who came again."""
        [row] = self._site.stack.query("SELECT COUNT(*) AS rows_of_calls FROM requests WHERE error_code <> 'not_sent'")
        return len(self._site.provider.calls()), int(row["rows_of_calls"])


@pytest.mark.proves("M9")
async def test_every_door_that_leads_upstream_has_a_meter(site, proof):
    """The doors are those of the edge's own tables. Beyond the row: other methods, and paths that only look like a door's."""
    doors = await doors_of_the_edge()
    proof.equals("doors without a case here", sorted(doors - set(CASES) - METERED), [])
    proof.equals("cases without a door", sorted((set(CASES) | METERED) - doors), [])
    site = site("auth", "admin", "proxy", prices=PRICES, is_forked=True)
    token = site.token(max_amount=10)
    each = proof.size(20, 4)
    told: list[Told] = []
    for stream in (False, True):
        told += await insist(site.doors, token, each, model="gpt-test", stream=stream, prompt="unique:1 tokens:5")
    proof.equals(f"completions by {2 * each} calls through {routes.CHAT}", sum(one.whole for one in told), 2 * each)
    async with Desk(site) as desk, Desk(site) as own, aiohttp.ClientSession(trust_env=False) as http:
        await booked(site, token)
        knocker = Knocker(site, http)
        before = knocker.books()
        secrets = {"token": token, "session": desk.session, "own": own.session}
        odd = []
        for (method, path), case in CASES.items():
            found = Counter([await knocker.knock(method, case.path or path, secrets[case.by], case.body) for _ in range(each)])
            if not set(found) <= case.statuses:
                odd.append(f"{method} {path}: {dict(found)} instead of {sorted(case.statuses)}")
        proof.note("doors without a model, calls on each", f"{len(CASES)}, {each}")
        proof.equals("of which answered otherwise than they should", odd, [])
        proof.equals("upstream calls and rows of those", minus(knocker.books(), before), (0, 0))

        letters = string.ascii_lowercase + string.digits + "_-/"
        made_up = ["".join(proof.chance.choices(letters, k=proof.chance.randint(1, 30))).strip("/") for _ in range(each)]
        unknown = [f"/v1/{path}" for path in (*NO_ROUTES, *made_up) if not path.startswith("models/")]
        found = Counter([await knocker.knock(m, path, token, CHAT) for path in unknown for m in ("POST", "GET")])
        proof.equals(f"{len(unknown)} unknown routes, two methods each", dict(found), {404: 2 * len(unknown)})
        methods = ("GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "QUERY")
        found = Counter([await knocker.knock(m, routes.CHAT, token, CHAT) for m in methods])
        proof.only("other methods on the door of chat", found, {204, 400, 405, 501})
        found = Counter([await knocker.knock("POST", path, token, CHAT) for path in TRICKS])
        proof.only("paths that look like it", found, {400, 404, 405})
        proof.equals("upstream calls and rows of all these", minus(knocker.books(), before), (0, 0))
        site.settle(RATES, told)
        rows = site.stack.query("SELECT endpoint, COUNT(*) AS calls FROM requests WHERE error_code = '' GROUP BY endpoint")
        by_route = Counter(call.path for call in site.provider.calls() if call.complete)
        proof.equals("rows by route", {row["endpoint"]: row["calls"] for row in rows}, dict(by_route))
        await _unpriced(site, proof, each, knocker)
    site.reconcile()


async def _unpriced(site: Site, proof, each: int, knocker: Knocker) -> None:
    """Without a price: refused where there is a budget, in any mode; passed and listed where there is none; 0 is a price."""
    budgets = {"strict": {"max_amount": 1}, "soft": {"max_amount": 1, "budget_mode": "soft"}}
    for mode, columns in budgets.items():
        for model in ("unpriced", "mock-half-priced"):
            before = knocker.books()
            told = await insist(site.doors, site.token(**columns), each, model=model)
            proof.equals(f"{model}, {mode} budget", dict(outcomes(told)), {"402 model_not_priced": each})
            proof.equals(f"{model}, {mode} budget: upstream calls and rows", minus(knocker.books(), before), (0, 0))
    for model, columns, priced in (("mock-free", {"max_amount": 1}, True), ("unpriced", {}, False)):
        before = knocker.books()
        token = site.token(**columns)
        told = await insist(site.doors, token, each, model=model)
        proof.equals(f"{model}, {columns or 'no budget'}", dict(outcomes(told)), {"200": each})
        proof.equals(f"{model}: upstream calls and rows", minus(knocker.books(), before), (each, each))
        await booked(site, token)
        rows = [row for row in site.installation.calls(token) if row["error_code"] != "not_sent"]
        found = {(row["cost_nanos"], row["held_nanos"], row["price_id"] is not None, row["state"]) for row in rows}
        proof.equals(f"{model}: cost, hold, has a price, state", found, {(0, 0, priced, "settled")})


def minus(now: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    return now[0] - before[0], now[1] - before[1]


async def booked(site: Site, token: str) -> None:
    """Until the calls of a token are booked."""
    wait_for("its calls are booked", lambda: site.row(token)["open_calls"] == 0)
