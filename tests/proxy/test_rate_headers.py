"""What callers are told of their limits: headers on every answer of a call, on refusals, and in their books."""

from __future__ import annotations

import time

import pytest

from gateway.errors import IpNotAllowed, RateLimited
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.rate_headers import of_limits
from tests.proxy.edge_harness import chat, running_edge

NAMES = [f"x-ratelimit-{what}-{unit}" for unit in ("requests", "tokens") for what in ("limit", "remaining", "reset")]


def limit(name: str, most: int, remaining: int, seconds: float) -> pb.RateLimit:
    message = pb.RateLimit(name=name, limit=most, remaining=remaining)
    message.resets_at.FromNanoseconds(int((time.time() + seconds) * 1e9))
    return message


@pytest.mark.parametrize("stream", [False, True])
async def test_each_answer_of_a_limited_token_tells_what_is_left(stream: bool) -> None:
    async with running_edge() as edge:
        edge.auth.rate_limits = [limit("requests_per_minute", 60, 59, 30), limit("tokens_per_minute", 9000, 8500, 30)]
        async with edge.post(chat(stream=stream)) as response:
            assert response.status == 200
            told = [response.headers[name] for name in NAMES]
            await response.read()
    assert told[:2] + told[3:5] == ["60", "59", "9000", "8500"]
    assert {told[2], told[5]} <= {"29s", "30s"}


async def test_the_providers_own_refusal_carries_them_too_and_a_limit_that_is_not_there_is_not_told() -> None:
    async with running_edge() as edge:
        edge.auth.rate_limits = [limit("requests_per_minute", 60, 59, 30)]
        async with edge.post(chat("mock-status-400")) as response:
            assert response.status == 400
            assert (response.headers["x-ratelimit-limit-requests"], response.headers["x-ratelimit-remaining-requests"]) == (
                "60",
                "59",
            )
            assert "x-ratelimit-limit-tokens" not in response.headers


async def test_without_limits_there_is_nothing_to_tell() -> None:
    async with running_edge() as edge, edge.post(chat()) as response:
        assert response.status == 200
        assert not [name for name in response.headers if name.lower().startswith("x-ratelimit")]


@pytest.mark.parametrize(
    ("figures", "delay", "told"),
    [
        (
            {"limit": "requests_per_minute", "limit_value": "60", "resets_at": "2026-11-25T13:38:00.000000Z"},
            17.2,
            {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "18s"},
        ),
        (
            {"limit": "tokens_per_minute", "limit_value": "0", "resets_at": "2026-11-25T13:38:00.000000Z"},
            0.001,
            {"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1s"},
        ),
        (
            {"limit": "max_parallel_requests", "limit_value": "5"},
            1.0,
            {"x-ratelimit-limit-parallel": "5", "x-ratelimit-remaining-parallel": "0"},
        ),
        ({}, 3.0, {}),
    ],
)
async def test_a_refusal_says_the_same_in_all_its_headers(figures: dict[str, str], delay: float, told: dict[str, str]) -> None:
    async with running_edge() as edge:
        edge.auth.refusal = RateLimited("This token is for 60 calls a minute.", retry_after=delay, metadata=figures)
        async with edge.post(chat()) as response:
            body = await response.json()
            assert (response.status, body["error"]["code"]) == (429, "rate_limit_exceeded")
            found = {name.lower(): value for name, value in response.headers.items() if name.lower().startswith("x-ratelimit")}
    assert found == told
    resets = [value for name, value in told.items() if "reset" in name]
    assert not resets or resets == [f"{response.headers['Retry-After']}s"]


async def test_an_address_that_is_not_allowed_is_refused_with_403() -> None:
    async with running_edge() as edge:
        edge.auth.refusal = IpNotAllowed("This token may not be used from your address.")
        async with edge.post(chat()) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "ip_not_allowed")


async def test_the_books_show_the_limits_with_what_is_left() -> None:
    async with running_edge() as edge:
        none = {"requests_per_minute": None, "tokens_per_minute": None, "max_parallel_requests": None}
        for path in ("usage", "balance"):
            async with edge.get(f"/v1/token/{path}") as response:
                books = await response.json()
                assert (books["limits"], books["resets_at"]) == (none, None)
        edge.auth.books = pb.GetTokenUsageResponse(
            budget_period="daily",
            rate_limits=[limit("requests_per_minute", 60, 7, 30)],
            max_parallel_requests=5,
            open_calls=6,
        )
        edge.auth.books.resets_at.FromJsonString("2026-11-26T00:00:00Z")
        for path in ("usage", "balance"):
            async with edge.get(f"/v1/token/{path}") as response:
                books = await response.json()
            assert (books["budget_period"], books["resets_at"]) == ("daily", "2026-11-26T00:00:00.000000Z")
            minute = books["limits"]["requests_per_minute"]
            assert (minute["limit"], minute["remaining"], minute["resets_at"][-1]) == (60, 7, "Z")
            assert books["limits"]["max_parallel_requests"] == {"limit": 5, "remaining": 0}
            assert books["limits"]["tokens_per_minute"] is None


def test_a_minute_that_is_over_by_our_clock_starts_anew_now() -> None:
    headers = of_limits([limit("requests_per_minute", 60, 0, -5)], time.time())
    assert headers["x-ratelimit-reset-requests"] == "0s"
