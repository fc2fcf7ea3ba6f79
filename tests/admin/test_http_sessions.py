"""The HTTP door of admin: who gets in, by a Bearer token and by a cookie, and what a foreign page cannot do."""

from __future__ import annotations

import asyncio
import itertools
import socket

import pytest
from prometheus_client import CollectorRegistry

from gateway import tokens as secrets
from gateway.rpc.access import none_revoked
from gateway.rpc.server import bind
from gateway.storage import models
from services.admin.app import make_server
from services.admin.metrics import AdminMetrics
from services.proxy import admin_http
from tests.admin.conftest import PASSWORD, TOKEN_KEY
from tests.admin.door import open_door

GUARDED = [
    ("GET", "/admin/tokens"),
    ("POST", "/admin/tokens"),
    ("GET", "/admin/tokens/1"),
    ("PATCH", "/admin/tokens/1"),
    ("DELETE", "/admin/tokens/1"),
    ("POST", "/admin/tokens/1/toggle"),
    ("POST", "/admin/tokens/1/rotate"),
    ("POST", "/admin/tokens/1/topup"),
    ("GET", "/admin/logs/requests"),
    ("GET", "/admin/logs/requests/x"),
    ("GET", "/admin/audit"),
    ("GET", "/admin/sessions"),
    ("DELETE", "/admin/sessions/x"),
    ("GET", "/auth/session"),
    ("POST", "/auth/logout"),
    ("POST", "/auth/password"),
]


# -- logins -------------------------------------------------------------------------------------------------------------------


async def test_a_login_from_a_terminal_gives_a_session_token_and_its_end(door):
    answer = await door.login(PASSWORD)
    assert answer.status == 200
    assert set(answer.json) == {"session_token", "expires_at"}
    assert answer.json["expires_at"] == "2026-11-24T00:00:00Z"
    assert answer.cookies == []


async def test_a_login_from_a_browser_gives_a_cookie_and_no_token_in_the_body(door):
    answer = await door.login(PASSWORD, kind="web")
    assert set(answer.json) == {"expires_at"}
    (cookie,) = answer.cookies
    name, _, rest = cookie.partition("=")
    secret, *attributes = rest.split("; ")
    assert name == "__Host-gateway_session"
    assert set(attributes) == {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"}
    assert len(secret) >= 22
    assert secret not in answer.text


async def test_wrong_password_and_unknown_name_get_the_same_answer(door):
    wrong = await door.login("not-the-phrase")
    unknown = await door.send("POST", "/auth/login", {"username": "nobody", "password": PASSWORD}, bearer="")
    assert (wrong.status, wrong.code) == (401, "unauthenticated")
    assert (unknown.status, unknown.text) == (wrong.status, wrong.text)
    changing = {"x-request-id", "request-id", "date"}
    assert {name: wrong.headers[name] for name in wrong.headers if name.lower() not in changing} == {
        name: unknown.headers[name] for name in unknown.headers if name.lower() not in changing
    }


NO_LOGINS = [
    "",
    "{}",
    "[]",
    "x",
    '{"username": "admin"}',
    '{"username": 5, "password": "x"}',
    '{"username": "admin", "password": null}',
    '{"username": "admin", "password": "x", "kind": "tv"}',
    '{"username": "admin", "password": "x", "otp": "1"}',
    '{"username": "a b", "password": "x"}',
    '{"username": "admin", "password": "' + "x" * 2000 + '"}',
]


async def test_a_login_that_cannot_be_one_is_refused_without_a_try(door, db):
    for body in NO_LOGINS:
        tries = models.LoginAttempt.select().count(db)
        assert (await door.send("POST", "/auth/login", body, bearer="")).status == 400
        assert models.LoginAttempt.select().count(db) == tries


async def test_guesses_get_429_and_retry_after(door):
    answers = [await door.login("not-the-phrase", kind=kind) for kind in ("terminal", "web") * 4]
    assert [answer.status for answer in answers[:5]] == [401] * 5
    assert (answers[-1].status, answers[-1].code) == (429, "throttled")
    assert int(answers[-1].headers["Retry-After"]) >= 1


# -- Bearer -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_without_a_session_nothing_opens(door, method, path):
    for bearer in ("", "garbage", "gzs_" + "A" * 43, secrets.generate(), PASSWORD):
        answer = await door.send(method, path, bearer=bearer)
        assert (answer.status, answer.code) == (401, "unauthenticated")
    carriers = (
        {"x-api-key": door.secret},
        {"Authorization": f"Basic {door.secret}"},
        {"Cookie": f"gateway_session={door.secret}"},
    )
    for headers in carriers:
        assert (await door.send(method, path, bearer="", headers=headers)).status == 401
    assert (await door.send(method, f"{path}?session_token={door.secret}", bearer="")).status == 401


async def test_a_client_token_opens_nothing_here(door):
    made = await door.send("POST", "/admin/tokens", "{}")
    answer = await door.send("GET", "/admin/tokens", bearer=made.json["token"])
    assert answer.status == 401
    assert made.json["token"] not in answer.text


async def test_logout_ends_the_session_at_once(door):
    assert (await door.send("POST", "/auth/logout")).status == 200
    assert (await door.send("GET", "/admin/tokens")).status == 401


async def test_the_session_tells_whose_it_is_and_not_its_secret(door):
    answer = await door.send("GET", "/auth/session")
    assert (answer.json["username"], answer.json["role"], answer.json["kind"]) == ("admin", "admin", "terminal")
    assert door.secret not in answer.text


async def test_two_credentials_that_differ_are_refused(door):
    async with door.session.get(
        f"{door.origin}/admin/tokens", headers=[("Authorization", f"Bearer {door.secret}"), ("Authorization", "Bearer other")]
    ) as response:
        assert response.status == 400


# -- cookies ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cookie(door):
    secret = (await door.login(PASSWORD, kind="web")).cookies[0].partition(";")[0]
    return {"Cookie": secret}


def unsafe(door, cookie, content_type="application/json", body="{}", **headers):
    sent = cookie | {name.replace("_", "-"): value for name, value in headers.items()}
    return door.send("POST", "/admin/tokens", body, bearer="", content_type=content_type, headers=sent)


async def test_a_page_of_our_own_works_with_the_cookie(door, cookie):
    assert (await door.send("GET", "/admin/tokens", bearer="", headers=cookie)).status == 200
    assert (await unsafe(door, cookie, Sec_Fetch_Site="same-origin")).status == 201
    assert (await unsafe(door, cookie, Origin=door.origin)).status == 201
    assert (await unsafe(door, cookie, Sec_Fetch_Site="same-origin", Origin=door.origin)).status == 201
    own = cookie | {"Sec-Fetch-Site": "same-origin"}
    assert (await door.send("POST", "/admin/tokens/1/toggle", bearer="", headers=own)).status == 200


async def test_a_page_behind_a_tls_proxy_works_by_what_the_browser_compared(door, cookie):
    https = door.origin.replace("http:", "https:")
    assert (await unsafe(door, cookie, Sec_Fetch_Site="same-origin", Origin=https)).status == 201
    assert (await unsafe(door, cookie, Origin=https)).status == 403


FOREIGN = [
    {},
    {"Origin": "null"},
    {"Origin": "https://evil.example"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "none"},
    {"Sec_Fetch_Site": ""},
    {"Sec_Fetch_Site": "same-origin", "Origin": "https://evil.example"},
    {"Sec_Fetch_Site": "same-origin", "Origin": "null"},
    {"Sec_Fetch_Site": "cross-site", "Origin": "OWN"},
    {"Origin": "OWN.evil.example"},
    {"Origin": "OWN@evil.example"},
    {"Origin": "OWN/"},
    {"Origin": "ftp://127.0.0.1"},
    {"Origin": "OWN0"},
    {"Sec_Fetch_Site": "same-origin, cross-site"},
    {"Sec_Fetch_Site": "same-origin", "Origin": "http://[::1"},
]
KINDS = ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]


async def test_a_foreign_page_changes_nothing(door, cookie, db):
    for headers, content_type in itertools.product(FOREIGN, KINDS):
        sent = {name: value.replace("OWN", door.origin) for name, value in headers.items()}
        answer = await unsafe(door, cookie, content_type, **sent)
        assert (answer.status, answer.code) == (403, "cross_site_request"), (headers, content_type)
    assert not models.ClientToken.select().exists(db)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"]
)
async def test_a_cookie_takes_json_only(door, cookie, content_type):
    answer = await unsafe(door, cookie, content_type, Sec_Fetch_Site="same-origin")
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


async def test_no_read_changes_anything(door, cookie, db):
    before = models.AuditRecord.select().count(db)
    for method, path in GUARDED:
        if method == "GET":
            await door.send("GET", path, bearer="", headers=cookie)
        else:
            await door.send("GET", f"{path}?_method={method}", bearer="", headers=cookie | {"X-HTTP-Method-Override": method})
    assert models.AuditRecord.select().count(db) == before


async def test_a_foreign_page_cannot_log_a_browser_in(door):
    body = {"username": "admin", "password": PASSWORD, "kind": "web"}
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = await door.send("POST", "/auth/login", body, bearer="", headers=headers)
        assert (answer.status, answer.cookies) == (403, [])
    assert (await door.send("POST", "/auth/login", body, bearer="", headers={"Origin": door.origin})).status == 200


async def test_logout_by_cookie_takes_it_back(door, cookie):
    answer = await door.send("POST", "/auth/logout", bearer="", headers=cookie | {"Sec-Fetch-Site": "same-origin"})
    assert answer.status == 200
    assert answer.cookies[0].startswith("__Host-gateway_session=; Max-Age=0; Secure")
    assert (await door.send("GET", "/admin/tokens", bearer="", headers=cookie)).status == 401


async def test_a_login_takes_no_session_id_from_outside(door):
    """A cookie that somebody planted before is not the session that the login opens."""
    planted = "gzs_" + "A" * 43
    body = {"username": "admin", "password": PASSWORD, "kind": "web"}
    headers = {"Cookie": f"__Host-gateway_session={planted}"}
    answer = await door.send("POST", "/auth/login", body, bearer="", headers=headers)
    assert planted not in answer.cookies[0]


# -- admin away ---------------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


async def test_an_admin_that_is_away_is_told_with_retry_after(identities, monkeypatch):
    monkeypatch.setattr(admin_http, "STARTING", 0.2)
    async with open_door(free_port(), identities) as door:
        for answer in (await door.login(PASSWORD), await door.send("GET", "/admin/tokens", bearer="gzs_" + "A" * 43)):
            assert (answer.status, answer.code) == (503, "admin_unavailable")
            assert answer.headers["Retry-After"] == "1"


async def test_a_login_waits_for_an_admin_that_is_starting(admin, db, clock, identities):
    port = free_port()
    server = make_server(
        db=db,
        identity=identities["admin"],
        revoked=none_revoked,
        token_key=TOKEN_KEY,
        clock=clock,
        registry=CollectorRegistry(),
        metrics=AdminMetrics(CollectorRegistry()),
    )
    async with open_door(port, identities) as door:
        login = asyncio.create_task(door.login(PASSWORD))
        await asyncio.sleep(0.5)
        bind(server, f"127.0.0.1:{port}", identities["admin"])
        server.start()
        assert (await login).status == 200
        await asyncio.to_thread(server.stop(0).wait, 5)
        started = asyncio.get_running_loop().time()
        assert (await door.login(PASSWORD)).code == "admin_unavailable"
        assert asyncio.get_running_loop().time() - started < 2
