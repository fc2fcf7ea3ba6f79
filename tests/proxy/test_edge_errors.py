"""How reasons are told, and what the log tells of calls."""

from __future__ import annotations

import inspect
import json

import pytest

from gateway import errors as reasons
from gateway import http_errors
from gateway.errors import BudgetExhausted, BudgetReserved, GatewayError, RateLimited, TokenUnknown
from gateway.process import logs
from services.proxy import errors
from tests.proxy.edge_harness import KEY, TOKEN, chat, running_edge

ALL = [kind for _, kind in inspect.getmembers(reasons, inspect.isclass) if issubclass(kind, GatewayError)]


@pytest.mark.parametrize("kind", ALL)
def test_each_reason_has_a_status_a_body_and_an_event(kind: type[GatewayError]) -> None:
    assert kind.reason in http_errors.TABLE or kind.reason == GatewayError.reason
    error = kind("what to do \u00e9\ud800", retry_after=1.5, metadata={"param": "model"})
    assert 400 <= http_errors.status(error) <= 599
    told = json.loads(errors.body(error))["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert told["code"] == http_errors.row(error).code
    event = errors.event(error)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2


def test_what_nobody_foresaw_is_told_without_its_text() -> None:
    for error in (ValueError("a secret"), reasons.Internal("a secret")):
        assert http_errors.status(error) == 500
        assert b"a secret" not in errors.body(error)


def test_all_unknown_tokens_are_told_alike() -> None:
    assert errors.body(TokenUnknown("deleted")) == errors.body(TokenUnknown("never seen"))


def test_a_spent_budget_says_that_trying_again_is_no_use_whatever_its_status() -> None:
    error = BudgetExhausted("The budget is spent.")
    assert (http_errors.status(error), http_errors.status(error, 429)) == (402, 429)
    assert http_errors.retry_headers(error) == {"x-should-retry": "false"}
    assert http_errors.status(RateLimited("slow down"), 429) == 429


def test_delays_are_whole_seconds_and_milliseconds_and_those_for_held_money_are_spread() -> None:
    assert http_errors.retry_headers(RateLimited("x", retry_after=1.2)) == {"Retry-After": "2", "retry-after-ms": "1200"}
    spread = {int(http_errors.retry_headers(BudgetReserved("x", retry_after=1.0))["retry-after-ms"]) for _ in range(200)}
    assert min(spread) >= 500
    assert max(spread) <= 1500
    assert len(spread) > 50


async def test_a_call_leaves_one_line_without_prompt_token_or_key(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "json", "proxy")
    async with running_edge(upstream_timeouts=(0.5, 0.5, 0.5)) as edge:
        for model in ("mock", "mock-status-400", "mock-reset", "mock-echo-error", "mock-html"):
            for stream in (False, True):
                async with edge.post(
                    chat(model, "canary-prompt tokens:3", stream=stream), **{"User-Agent": "canary-agent"}
                ) as response:
                    await response.read()
        async with edge.session.get(
            edge.url + "/v1/models?key=canary-query", headers={"x-api-key": "canary-token"}
        ) as response:
            assert response.status == 401
        await edge.raw(b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer canary-token\r\nBad Header: canary-header\r\n\r\n")
        await edge.raw(b"GET /v1/%0a%1b[31m\xe2\x80\xa8\xff HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")
    written = capfd.readouterr().err
    lines = [json.loads(line) for line in written.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) >= 11
    first = requests[0]
    assert {"request_id", "token_id", "model", "status", "ttft_ms", "duration_ms", "provider", "stream"} <= set(first)
    for canary in ("canary-prompt", "canary-agent", "canary-query", "canary-token", "canary-header", TOKEN, KEY, KEY[8:24]):
        assert canary not in written, canary
    assert "\x1b" not in written
