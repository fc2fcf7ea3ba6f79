"""A stock OpenAI SDK with nothing changed but base URL and key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest

from tests.suite.conftest import RATES, Installation

MESSAGES = [{"role": "user", "content": "Say something. tokens:20 prompt:15"}]


@contextmanager
def sdk(suite: Installation, token: str, sent: list[str] | None = None) -> Iterator[openai.OpenAI]:
    """The SDK as it comes, retries and all; `sent` gets the path of each HTTP request."""
    seen: list[str] = [] if sent is None else sent
    hooks = {"request": [lambda request: seen.append(request.url.path)]}
    with (
        openai.DefaultHttpxClient(event_hooks=hooks, trust_env=False) as http,
        openai.OpenAI(base_url=suite.stack.base_url, api_key=token, http_client=http) as client,
    ):
        yield client


def test_a_plain_call_is_answered_and_charged_by_the_providers_numbers(suite):
    token = suite.token(max_amount=1)
    with sdk(suite, token) as client:
        answer = client.chat.completions.create(model="gpt-test", messages=MESSAGES)
    assert answer.choices[0].message.content.startswith("word")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (15, 20)
    [call] = suite.calls(token)
    assert (call["state"], call["usage_source"], call["status"]) == ("settled", "provider", 200)
    assert call["cost_nanos"] == RATES.nanos({"prompt_tokens": 15, "completion_tokens": 20})


def test_a_streamed_call_hides_the_usage_that_was_not_asked_for_and_charges_it(suite):
    token = suite.token(max_amount=1)
    with sdk(suite, token) as client:
        chunks = list(client.chat.completions.create(model="gpt-test", messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "word " * 20
    assert not any(chunk.usage for chunk in chunks)
    [call] = suite.calls(token)
    assert call["cost_nanos"] == RATES.nanos({"prompt_tokens": 15, "completion_tokens": 20})


def test_a_streamed_call_gives_the_usage_that_was_asked_for(suite):
    with sdk(suite, suite.token()) as client:
        stream = client.chat.completions.create(
            model="gpt-test", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 20


def test_the_models_of_a_token_are_listed(suite):
    with sdk(suite, suite.token(allowed_models="cent")) as client:
        assert [model.id for model in client.models.list()] == ["cent"]
        assert client.models.retrieve("cent").id == "cent"


def refusal(suite: Installation, token: str, model: str = "gpt-test") -> tuple[openai.APIStatusError, list[str]]:
    """The SDK's exception for one call, and what it sent."""
    sent: list[str] = []
    with sdk(suite, token, sent) as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=model, messages=MESSAGES)
    assert caught.value.response.headers["x-request-id"]
    return caught.value, sent


@pytest.mark.parametrize(
    ("columns", "model", "status", "code"),
    [
        ({"enabled": 0}, "gpt-test", 401, "token_disabled"),
        ({"expires_at": "2020-01-31"}, "gpt-test", 401, "token_expired"),
        ({"max_amount": 5, "amount_spent": 5}, "gpt-test", 402, "insufficient_quota"),
        ({"max_amount": 0}, "gpt-test", 402, "insufficient_quota"),
        ({"max_amount": 0.005}, "cent", 402, "request_exceeds_budget"),
        ({"max_amount": 5}, "unpriced", 402, "model_not_priced"),
        ({"allowed_models": "gpt-4,claude-*"}, "gpt-test", 403, "model_not_allowed"),
        ({}, "nobody-serves-this", 404, "model_not_found"),
    ],
)
def test_a_refusal_comes_as_the_sdks_own_exception_after_one_http_call(suite, columns, model, status, code):
    token = suite.token(**columns)
    error, sent = refusal(suite, token, model)
    assert (error.status_code, error.code) == (status, code)
    assert sent == ["/v1/chat/completions"]
    assert suite.calls(token) == []


def test_an_unknown_token_is_refused_as_openai_does(suite):
    error, sent = refusal(suite, "sk-nobody-has-this-token-at-all")
    assert isinstance(error, openai.AuthenticationError)
    assert (error.code, len(sent)) == ("invalid_api_key", 1)


def test_a_failed_call_costs_nothing_and_is_on_record(suite):
    token = suite.token(max_amount=1)
    error, _ = refusal(suite, token, "mock-status-400")
    assert error.status_code == 400
    [call] = suite.calls(token)
    assert (call["state"], call["cost_nanos"], call["status"]) == ("released", 0, 400)


def test_neither_key_crosses_the_gateway(suite):
    token = suite.token()
    with sdk(suite, token) as client:
        answer = client.chat.completions.with_raw_response.create(model="mock-echo", messages=MESSAGES)
    received = answer.parse().choices[0].message.content
    assert token not in received
    [call] = [call for call in suite.provider.calls() if call.model == "mock-echo"]
    assert ("Authorization", "Bearer sk-canary-7Qm2Zx9Lp4Vt") in call.headers
    told = answer.text + str(dict(answer.headers))
    assert "sk-canary-7Qm2Zx9Lp4Vt" not in str(dict(answer.headers)), told


def test_a_token_sees_its_own_books(suite):
    token = suite.token(max_amount=10, amount_spent=2.5)
    with sdk(suite, token) as client:
        client.chat.completions.create(model="gpt-test", messages=MESSAGES)
        usage = client.get("/token/usage", cast_to=dict)
        balance = client.get("/token/balance", cast_to=dict)
    cost = RATES.nanos({"prompt_tokens": 15, "completion_tokens": 20}) / 1e9
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (15, 20, 35)
    assert usage["amount_spent"] == balance["amount_spent"] == pytest.approx(2.5 + cost, abs=1e-12)
    assert (usage["max_amount"], usage["held"], usage["status"], usage["currency"]) == (10.0, 0.0, "active", "USD")
    assert [row["model"] for row in usage["models"]] == ["gpt-test"]
    assert usage["recent"][0]["tokens"] == 35
