"""Where administration is answered, what pages of other origins may do, and how long a provider may take in all."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from services.proxy.cors import EXPOSED
from tests.proxy.edge_harness import Edge, body_of, chat, head, running_edge, status_of
from tests.support import edge_certificates

PATHS = ("/admin/tokens", "/auth/login", "/admin", "/auth/session")
ORIGIN = "https://app.example.com"


async def code(response: aiohttp.ClientResponse) -> tuple[int, str]:
    return response.status, (await response.json())["error"]["code"]


async def test_administration_has_a_port_of_its_own_and_applications_have_theirs() -> None:
    async with running_edge(admin_http="127.0.0.1:0") as edge:
        apart = f"http://127.0.0.1:{edge.admin_port}"
        for path in PATHS:
            async with edge.get(path) as response:
                assert await code(response) == (404, "route_not_found")
            async with edge.session.get(apart + path) as response:
                assert (await response.json())["admin"] == path
        for path in ("/v1/models", "/v1/token/usage", "/v1/models/mock"):
            async with edge.session.get(apart + path, headers=edge.headers()) as response:
                assert await code(response) == (404, "route_not_found")
        async with edge.session.post(apart + "/v1/chat/completions", json=chat(), headers=edge.headers()) as response:
            assert await code(response) == (404, "route_not_found")
        for url in (edge.url, apart):
            for path in ("/healthz", "/readyz", "/openapi.json"):
                async with edge.session.get(url + path) as response:
                    assert response.status == 200
        async with edge.session.get(apart + "/openapi.json") as response:
            assert not [path for path in (await response.json())["paths"] if path.startswith("/v1")]
        assert edge.provider.calls == []


async def test_administration_can_be_nowhere() -> None:
    async with running_edge(admin_http="off") as edge:
        assert edge.admin_port is None
        for path in PATHS:
            async with edge.get(path) as response:
                assert await code(response) == (404, "route_not_found")
        async with edge.post(chat()) as response:
            assert response.status == 200


async def test_both_ports_speak_https(tmp_path: Path) -> None:
    cert, key, _ = edge_certificates.write(tmp_path)
    async with running_edge(admin_http="127.0.0.1:0", tls_cert=str(cert), tls_key=str(key)) as edge:
        for port, path in ((edge.port, "/healthz"), (edge.admin_port, "/auth/session")):
            url = f"https://127.0.0.1:{port}{path}"
            async with edge.session.get(url, ssl=edge_certificates.trust()) as response:
                assert response.status == 200
                assert (await response.json()).get("scheme", "https") == "https"


# -- pages of other origins ---------------------------------------------------------------------------------------------------


async def preflight(edge: Edge, path: str = "/v1/chat/completions", **headers: str) -> aiohttp.ClientResponse:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        **headers,
    }
    async with edge.session.options(edge.url + path, headers=asked) as response:
        return response


def permissions(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items() if name.lower().startswith("access-control-")}


async def test_a_page_of_a_listed_origin_may_ask_and_call_without_credentials_of_the_browser() -> None:
    async with running_edge(cors_origins=f"{ORIGIN}, http://localhost:3000") as edge:
        response = await preflight(edge)
        assert response.status == 204
        assert permissions(response) == {
            "access-control-allow-origin": ORIGIN,
            "access-control-allow-methods": "OPTIONS, POST",
            "access-control-allow-headers": "authorization,content-type,x-stainless-lang",
            "access-control-max-age": "86400",
            "access-control-expose-headers": EXPOSED,
        }
        assert response.headers["Vary"] == "Origin, Access-Control-Request-Headers"
        for stream in (False, True):
            async with edge.post(chat(stream=stream), Origin=ORIGIN) as answered:
                assert answered.status == 200
                assert permissions(answered) == {
                    "access-control-allow-origin": ORIGIN,
                    "access-control-expose-headers": EXPOSED,
                }
                assert answered.headers["Vary"] == "Origin"
        async with edge.session.get(edge.url + "/v1/models", headers={"Origin": ORIGIN}) as refused:
            assert refused.status == 401
            assert permissions(refused)["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize(
    "origin", ["https://app.example.com.evil.net", "http://app.example.com", "null", "https://APP.example.com"]
)
async def test_a_page_of_another_origin_is_told_nothing(origin: str) -> None:
    async with running_edge(cors_origins=ORIGIN) as edge:
        response = await preflight(edge, Origin=origin)
        assert (response.status, permissions(response)) == (204, {})
        async with edge.post(chat(), Origin=origin) as answered:
            assert permissions(answered) == {}


async def test_administration_is_for_no_page_of_another_origin() -> None:
    async with running_edge(cors_origins=ORIGIN) as edge:
        assert permissions(await preflight(edge, "/auth/login")) == {}
        assert permissions(await preflight(edge, "/healthz")) == {}


async def test_without_the_setting_nothing_is_told_to_browsers() -> None:
    async with running_edge() as edge:
        response = await preflight(edge)
        assert (response.status, permissions(response), "Vary" in response.headers) == (204, {}, False)


async def test_names_of_headers_that_are_none_are_not_repeated() -> None:
    async with running_edge(cors_origins=ORIGIN) as edge:
        response = await preflight(edge, **{"Access-Control-Request-Headers": "x(y), <z>"})
        assert "access-control-allow-headers" not in permissions(response)


# -- the time of an answer in all ---------------------------------------------------------------------------------------------


async def test_a_provider_that_drips_an_answer_is_left_after_its_time_and_the_call_is_charged() -> None:
    async with running_edge(upstream_timeouts=(1.0, 5.0, 5.0), upstream_total=1.5) as edge:
        started = time.monotonic()
        async with edge.post(chat("mock-drip")) as response:
            assert await code(response) == (504, "upstream_timeout")
        assert 1.4 < time.monotonic() - started < 4
        settlement = await edge.settled()
        assert (settlement.error_code, settlement.source) != ("", 0)


async def test_a_stream_that_never_ends_is_ended_with_an_error_event() -> None:
    async with running_edge(upstream_timeouts=(1.0, 5.0, 5.0), upstream_total=1.5) as edge:
        async with edge.post(chat(prompt="chunks:100 tokens:100 seconds:30", stream=True)) as response:
            assert response.status == 200
            async with asyncio.timeout(5):
                text = await response.read()
        assert b"upstream_timeout" in text
        assert b"[DONE]" not in text
        assert (await edge.settled()).error_code == "upstream_timeout"


async def test_a_connection_whose_answer_came_in_time_is_used_again_for_longer_than_that() -> None:
    async with running_edge(upstream_total=0.5) as edge:
        for _ in range(2):
            async with edge.post(chat()) as response:
                assert response.status == 200
        started = time.monotonic()
        while time.monotonic() - started < 1.0:
            async with edge.post(chat(prompt="seconds:0.2", stream=True)) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_options_is_answered_as_before(tmp_path: Path) -> None:
    async with running_edge(admin_http="off") as edge:
        answer = await edge.raw(head("OPTIONS", "/v1/models", "Connection: close"))
        assert (status_of(answer), b"Allow: GET, OPTIONS" in answer) == (204, True)
        assert (
            body_of(await edge.raw(head("OPTIONS", "/admin/tokens", "Connection: close")))["error"]["code"] == "route_not_found"
        )
