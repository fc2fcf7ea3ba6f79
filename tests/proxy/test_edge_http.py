"""The HTTP border: paths, methods, credentials, bodies, limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from gateway.process.settings_tables import ModelSettings
from tests.proxy.edge_harness import TOKEN, Edge, body_of, chat, head, running_edge, status_of


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running_edge(body_limit=100_000, body_pool=250_000) as running:
        yield running


# -- routes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models",
        "/v1//models",
        "/v1/../v1/models",
        "/v1/./models",
        "/v1/%2e%2e/models",
        "/v1/..%2fmodels",
        "/%76%31/models",
        "/v1/models;x=1",
        "/v1/models%00",
        "/v1\\models",
        "/V1/models",
        "/v1/Models",
        "/v1/models/",
        "/v1/models.",
        "/v1/token/usage/",
        "/v1/chat/completions/",
        "/v1/chat/completions%20",
        "/v1/models/..",
        "/v1/models/%2e%2e",
        "/v1/models/../../admin",
        "/v1/models/a%2f..%2fb",
        "/v1/embeddings",
        "/v1/files",
        "/v1/responses/resp_1",
        "/v1",
        "/metrics",
        "/debug",
        "/administrators",
        "/admin/../v1/models",
        "/admin/%2e%2e",
        "/authx",
        "*",
    ],
)
async def test_what_is_not_exactly_a_route_does_not_exist(edge: Edge, target: str) -> None:
    answer = await edge.raw(head("GET", target, "Connection: close"))
    assert status_of(answer) in {400, 404}, answer
    assert body_of(answer)["error"]["code"] in {"route_not_found", "invalid_request"}
    assert not edge.provider.calls


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "TRACE"])
async def test_another_method_is_told_which_there_are(edge: Edge, method: str) -> None:
    answer = await edge.raw(head(method, "/v1/chat/completions", "Connection: close"))
    assert status_of(answer) == 405
    assert b"Allow: OPTIONS, POST" in answer


@pytest.mark.parametrize(
    "line", ["CONNECT edge:443 HTTP/1.1", "post /v1/models HTTP/1.1", "GE@T / HTTP/1.1", "GET /", "PRI * HTTP/2.0"]
)
async def test_what_is_no_request_is_refused_and_the_connection_ends(edge: Edge, line: str) -> None:
    answer = await edge.raw(line.encode() + b"\r\nHost: edge\r\n\r\n")
    assert status_of(answer) in {0, 400, 404, 405, 501}


async def test_options_are_answered_and_health_needs_no_token(edge: Edge) -> None:
    async with edge.session.options(edge.url + "/v1/models") as response:
        assert (response.status, response.headers["Allow"]) == (204, "GET, OPTIONS")
    async with edge.session.get(edge.url + "/healthz") as response:
        assert await response.json() == {"status": "ok"}
    async with edge.session.head(edge.url + "/") as response:
        assert response.status == 200
    async with edge.session.get(edge.url + "/readyz") as response:
        assert response.status == 200
    edge.auth.ready = False
    async with edge.session.get(edge.url + "/readyz") as response:
        assert response.status == 503
    async with edge.session.get(edge.url + "/healthz") as response:
        assert response.status == 200


async def test_admin_and_auth_are_handed_over(edge: Edge) -> None:
    for path in ("/admin/tokens", "/admin/tokens/7/toggle", "/auth/login"):
        async with edge.get(path) as response:
            assert (await response.json())["admin"] == path
            assert response.headers["x-request-id"]


# -- malformed requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        head("GET", "/v1/models", "Bad Header: secret-in-header"),
        head("GET", "/v1/models", "X-A: a\x00b secret-in-header"),
        head("POST", "/v1/chat/completions", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("POST", "/v1/chat/completions", "Content-Length: 5", "Content-Length: 6") + b"12345",
        head("POST", "/v1/chat/completions", "Content-Length: -5"),
        head("POST", "/v1/chat/completions", "Content-Length: 5x"),
        head("POST", "/v1/chat/completions", "Transfer-Encoding: gzip, chunked, x") + b"0\r\n\r\n",
        head("GET", "/v1/models", "Host: secret-in-header"),
    ],
)
async def test_a_malformed_request_is_refused_without_an_echo(edge: Edge, data: bytes) -> None:
    answer = await edge.raw(data)
    assert status_of(answer) in {400, 404}, answer
    assert b"secret-in-header" not in answer
    assert TOKEN.encode() not in answer
    assert b"aiohttp" not in answer.lower()
    assert b"Connection: close" in answer
    assert body_of(answer)["error"]["code"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("GET", "/v1/models?" + "a" * 65_536), 414),
        (head("GET", "/v1/models", "X-Long: " + "a" * 9_216), 431),
        (head("GET", "/v1/models", *(f"X-{n}: 1" for n in range(129))), 431),
    ],
)
async def test_a_head_that_is_too_large_is_refused(edge: Edge, data: bytes, status: int) -> None:
    answer = await edge.raw(data)
    assert status_of(answer) == status
    assert body_of(answer)["error"]["type"] == "invalid_request_error"


async def test_a_head_that_comes_too_slowly_is_cut(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.protocol.HEADER_TIME", 0.2)
    answer = await edge.raw(b"GET /v1/models HTTP/1.1\r\nHost: edge\r\n")
    assert status_of(answer) == 408
    assert body_of(answer)["error"]["code"] == "request_timeout"


async def test_a_body_that_comes_too_slowly_is_cut(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.body.WINDOW", 0.2)
    answer = await edge.raw(head("POST", "/v1/chat/completions", "Content-Length: 500") + b'{"model"')
    assert status_of(answer) == 408


# -- credentials --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer {TOKEN}"},
        {"Authorization": f"BEARER   {TOKEN}"},
        {"x-api-key": TOKEN},
        {"api-key": TOKEN},
        {"x-goog-api-key": TOKEN},
        {"x-api-key": TOKEN, "Authorization": f"Bearer {TOKEN}"},
        {"x-api-key": "", "Authorization": f"Bearer {TOKEN}"},
        {"x-api-key": TOKEN, "Authorization": "Bearer "},
    ],
)
async def test_each_carrier_of_a_token_is_as_good_as_the_others(edge: Edge, headers: dict[str, str]) -> None:
    async with edge.session.get(edge.url + "/v1/token/balance", headers=headers) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": "Bearer unknown"}, 401),
        ({"Authorization": f"Bearer {TOKEN} x"}, 401),
        ({"Authorization": "Bearer " + "x" * 513}, 401),
        ({"Authorization": "Bearer caf\u00e9-token"}, 401),
        ({"Cookie": f"token={TOKEN}"}, 401),
        ({"x-api-key": TOKEN, "Authorization": "Bearer other"}, 400),
        ({"x-api-key": TOKEN, "api-key": "other"}, 400),
        ({"x-api-key": TOKEN, "Authorization": f"Basic {TOKEN}"}, 400),
    ],
)
async def test_what_is_no_token_opens_nothing(edge: Edge, headers: dict[str, str], status: int) -> None:
    bodies = set()
    for path in ("/v1/token/balance", "/v1/models", "/v1/token/usage"):
        async with edge.session.get(f"{edge.url}{path}?key={TOKEN}&api_key={TOKEN}", headers=headers) as response:
            assert response.status == status
            bodies.add(await response.text())
    async with edge.session.post(edge.url + "/v1/chat/completions", headers=headers, json=chat()) as response:
        assert response.status == status
        bodies.add(await response.text())
    assert len(bodies) == 1
    assert not edge.provider.calls


async def test_two_authorization_headers_that_differ_are_refused(edge: Edge) -> None:
    answer = await edge.raw(head("GET", "/v1/token/balance", "Authorization: Bearer other", "Connection: close"))
    assert status_of(answer) == 400
    assert body_of(answer)["error"]["code"] == "ambiguous_credentials"
    answer = await edge.raw(head("GET", "/v1/token/balance", f"Authorization: Bearer {TOKEN}", "Connection: close"))
    assert status_of(answer) == 200


async def test_an_address_that_guesses_tokens_is_slowed_down_and_good_tokens_still_pass(edge: Edge) -> None:
    seen = []
    for number in range(33):
        async with edge.session.get(edge.url + "/v1/models", headers={"x-api-key": f"guess-{number}"}) as response:
            seen.append(response.status)
            last = response
    assert seen[:30] == [401] * 30
    assert seen[-1] == 429
    assert int(last.headers["Retry-After"]) <= 60
    async with edge.get("/v1/models") as response:
        assert response.status == 200


# -- bodies -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b'{"model":"mock","messages":[{"role":"user","content":"x"}]} x',
        b'{"model":"mock","model":"other","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"mock","messages":[{"role":"user","role":"system","content":"x"}]}',
        b'{"model":"mock","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"mock","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"model":"mock","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"mock","messages":[{"role":"user","content":"\\ud800"}]}',
        b'\xef\xbb\xbf{"model":"mock","messages":[{"role":"user","content":"x"}]}',
        '{"model":"mock"}'.encode("utf-16"),
        b'{"model":"mock","messages":[{"role":"user","content":' + b"[" * 20_000 + b"]" * 20_000 + b"}]}",
        b'{"model":"mock","messages":[{"role":"user","content":"x"}],"seed":' + b"5" * 5_000 + b"}",
        b'{"model":"","messages":[{"role":"user","content":"x"}]}',
        b'{"model":5,"messages":[{"role":"user","content":"x"}]}',
        b'{"messages":[{"role":"user","content":"x"}]}',
        b'{"model":"mock"}',
        b'{"model":"mock","messages":[]}',
        b'{"model":"mock","messages":["x"]}',
        b'{"model":"mock","messages":[{}],"stream":"true"}',
        b'{"model":"mock","messages":[{}],"stream":true,"stream_options":[]}',
        b'{"model":"mock","messages":[{}],"models":["other"]}',
        *(b'{"model":"mock","messages":[{}],"n":%s}' % n for n in (b"0", b"129", b"1.5", b'"2"', b"true")),
        *(b'{"model":"mock","messages":[{}],"max_tokens":%s}' % n for n in (b"0", b"-1", b"1.5", b'"5"', b"true")),
    ],
)
async def test_a_body_that_is_not_a_chat_completion_reaches_nobody(edge: Edge, raw: bytes) -> None:
    async with edge.post(None, raw=raw) as response:
        body = await response.json()
    assert response.status == 400
    assert body["error"]["code"] == "invalid_request"
    assert "Traceback" not in body["error"]["message"]
    assert not edge.provider.calls
    assert not edge.auth.admitted


async def test_a_body_goes_to_the_provider_byte_for_byte_whatever_its_content_type(edge: Edge) -> None:
    raw = (
        b'{ "messages" :[ {"role":"user","content":"h\\u00e9 \xe6\x97\xa5 \\/ 1.0"}],\n'
        b' "model":"mock","x-unknown":{"b":1.50,"a":[ ]},"seed":1E2 }'
    )
    async with edge.post(None, raw=raw, **{"Content-Type": "application/x-www-form-urlencoded"}) as response:
        assert response.status == 200
    assert edge.provider.calls[0].body.encode() == raw


async def test_only_what_must_change_in_a_body_changes() -> None:
    aliases = (ModelSettings(name="fast", targets=[{"provider": "mock", "model": "mock-small"}]),)
    async with running_edge(models=aliases) as edge:
        edge.auth.limit = 50
        raw = b'{"model" : "fast", "max_tokens":100,"messages":[{"role":"user","content":"\xe6\x97\xa5"}],"stream":true}'
        async with edge.post(None, raw=raw) as response:
            await response.read()
        assert response.headers["x-gateway-max-output-tokens"] == "50"
        sent = edge.provider.calls[0].body.encode()
        assert sent == (
            b'{"stream_options":{"include_usage":true},"model" : "mock-small", "max_tokens":50,'
            b'"messages":[{"role":"user","content":"\xe6\x97\xa5"}],"stream":true}'
        )
        admitted = next(iter(edge.auth.admitted.values()))
        assert (admitted.request_model, admitted.max_output_tokens) == ("fast", 100)
        assert [(c.provider, c.model) for c in admitted.candidates] == [("mock", "mock-small")]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
async def test_the_body_limit_holds_to_the_byte(edge: Edge, chunked: bool, extra: int, status: int) -> None:
    raw = json.dumps(chat()).encode()
    raw += b" " * (100_000 - len(raw) + extra)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(raw), 30_000):
            yield raw[start : start + 30_000]

    async with edge.session.post(
        edge.url + "/v1/chat/completions", data=pieces() if chunked else raw, headers=edge.headers()
    ) as response:
        assert response.status == status


async def test_a_large_body_of_an_unknown_sender_is_not_read(edge: Edge) -> None:
    request = head("POST", "/v1/chat/completions", "Content-Length: 90000", "Expect: 100-continue").replace(
        TOKEN.encode(), b"wrong"
    )
    answer = await edge.raw(request, until=1.0)
    assert status_of(answer) == 401
    assert b"100 Continue" not in answer


async def test_a_sender_who_waits_for_a_sign_gets_it(edge: Edge) -> None:
    raw = json.dumps(chat()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(
        head("POST", "/v1/chat/completions", f"Content-Length: {len(raw)}", "Expect: 100-continue", "Connection: close")
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(raw)
    assert status_of(await reader.read()) == 200
    writer.close()
    await writer.wait_closed()
    assert len(edge.auth.looks) == 1


async def test_bodies_beyond_the_pool_are_refused_until_there_is_room(edge: Edge) -> None:
    length = 90_000
    open_ones = []
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(head("POST", "/v1/chat/completions", f"Content-Length: {length}") + b"{")
        open_ones.append(writer)
    await asyncio.sleep(0.1)
    answer = await edge.raw(head("POST", "/v1/chat/completions", f"Content-Length: {length}") + b"{", until=2.0)
    assert status_of(answer) == 503
    assert body_of(answer)["error"]["code"] == "overloaded"
    for writer in open_ones:
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.05)
    async with edge.post(None, raw=json.dumps(chat()).encode().ljust(length)) as response:
        assert response.status == 200


async def test_a_compressed_body_is_refused(edge: Edge) -> None:
    async with edge.post(None, raw=b"\x1f\x8b", **{"Content-Encoding": "gzip"}) as response:
        assert response.status == 415


async def test_a_second_request_behind_a_refused_body_is_not_taken_for_its_content(edge: Edge) -> None:
    marker = head("GET", "/healthz", "Connection: close")
    answer = await edge.raw(head("POST", "/v1/chat/completions", f"Content-Length: {len(marker)}") + marker)
    assert answer.count(b"HTTP/1.1") == 1
    assert status_of(answer) == 400
