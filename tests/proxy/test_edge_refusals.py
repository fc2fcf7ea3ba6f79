"""Models that are not there or not for this token, and services that are away."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.process.settings_tables import ProviderSettings
from tests.proxy.edge_harness import KEY, TOKEN, Edge, Token, chat, head, running_edge, status_of


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running_edge() as running:
        yield running


async def test_a_model_that_nobody_serves_is_not_found_once_the_token_is_known(edge: Edge) -> None:
    async with edge.post(chat("claude-3")) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "model_not_found"
    edge.auth.tokens[TOKEN] = Token(models=("mock",))
    async with edge.post(chat("claude-3")) as response:
        assert response.status == 403
    async with edge.post(chat("mock-x")) as response:
        assert response.status == 403
    assert not edge.provider.calls


async def test_models_are_listed_and_found_by_name() -> None:
    names = ["org/model:7b", "plain"]
    provider = ProviderSettings(name="p", kind="openai-compatible", base_url="http://127.0.0.1:1/v1", models=names)
    async with running_edge(providers=[provider]) as edge:
        async with edge.get("/v1/models") as response:
            answer = await response.json()
        assert [model["id"] for model in answer["data"]] == names
        assert answer["data"][0] == {"id": "org/model:7b", "object": "model", "created": 0, "owned_by": "p"}
        for name in ("org/model:7b", "org%2Fmodel%3A7b"):
            answer = await edge.raw(head("GET", f"/v1/models/{name}", "Connection: close"))
            assert status_of(answer) == 200, answer
        async with edge.get("/v1/models/other") as response:
            assert response.status == 404


async def test_an_auth_that_is_away_lets_nothing_through(edge: Edge) -> None:
    edge.auth.away = True
    async with edge.post(chat()) as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["code"] == "auth_unavailable"
    assert not edge.provider.calls


async def test_an_outbox_that_cannot_be_written_stops_a_call_before_it_is_made(edge: Edge) -> None:
    edge.outbox.writable = False
    async with edge.post(chat()) as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "outbox_unavailable"
    settlement = await edge.settled()
    assert settlement.error_code == "not_sent"
    assert not edge.provider.calls


async def test_while_it_stops_connections_end_with_their_answers(edge: Edge) -> None:
    edge.app.close()
    async with edge.post(chat()) as response:
        assert response.status == 200
        assert response.headers["Connection"] == "close"
    async with edge.session.get(edge.url + "/readyz") as response:
        assert response.status == 503


def settings(name: str, models: list[str]) -> ProviderSettings:
    return ProviderSettings(
        name=name, kind="openai-compatible", base_url="http://127.0.0.1:9/v1", api_keys=(KEY,), models=models
    )


@pytest.mark.parametrize(
    ("asked", "guess"), [("gpt-4p", "gpt-4o"), ("GPT-4O-MINI", None), ("nothing-like-it", None), ("gpt-4o" * 20, None)]
)
async def test_a_model_that_nobody_serves_is_told_with_the_nearest_name_that_the_token_may_use(
    asked: str, guess: str | None
) -> None:
    providers = [settings("p", ["gpt-4o", "secret-model-of-others"])]
    async with running_edge(providers=providers) as edge:
        edge.auth.hidden = {"secret-model-of-others"}
        for call in (edge.post(chat(asked)), edge.get(f"/v1/models/{asked}")):
            async with call as response:
                told = (await response.json())["error"]
            assert (response.status, told["code"]) == (404, "model_not_found")
            assert ("Did you mean" in told["message"]) == (guess is not None)
            assert guess is None or f"Did you mean {guess!r}?" in told["message"]
            assert "secret-model" not in told["message"]


async def test_a_name_that_the_token_may_not_use_is_never_suggested() -> None:
    async with running_edge(providers=[settings("p", ["secret-model-of-others"])]) as edge:
        edge.auth.hidden = {"secret-model-of-others"}
        async with edge.post(chat("secret-model-of-other")) as response:
            assert "secret-model-of-others" not in (await response.json())["error"]["message"]
