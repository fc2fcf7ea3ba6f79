"""The fakes for users' own tests: the same story told to the real auth and to them ends the same."""

from __future__ import annotations

import pytest

from gateway.client import AsyncGateway, Gateway, Outcome, Source
from gateway.client.memory import MemoryAuth
from gateway.client.testing import AsyncFakeGateway, FakeGateway
from gateway.errors import (
    AlreadyExists,
    AuthUnavailable,
    GatewayError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    TokenExpired,
)
from gateway.ids import uuid7
from gateway.stubs.auth.v1 import auth_pb2 as pb
from tests.gateway.client_harness import real_auth
from tests.support.ledger import DOLLAR, MODEL, SECRET, TOKEN_PRICE

TOKENS = {
    SECRET: {"max_amount": "1"},
    "free-token": {"max_amount": None},
    "narrow-token": {"max_amount": "1", "models": "other,x-*"},
    "off-token": {"max_amount": "1", "enabled": False},
    "old-token": {"max_amount": None, "expires_at": "2020-01-01"},
    "soft-token": {"max_amount": "0.01", "strict": False},
}


def fill(fake):
    for secret, columns in TOKENS.items():
        fake.add_token(secret, **columns)
    fake.set_price(MODEL, provider="demo", input="1000", output="1000", context_window=100_000, max_output_tokens=1_000)
    return fake


def fill_real(auth):
    for secret, columns in TOKENS.items():
        row = dict(columns)
        if "models" in row:
            row["allowed_models"] = row.pop("models")
        row["enabled"] = int(row.get("enabled", True))
        row["budget_mode"] = "strict" if row.pop("strict", True) else "soft"
        auth.add_token(secret, **row)


def told(ask):
    """What an ask ends in: a refusal with all that it says, or the figures of an answer."""
    try:
        return figures(ask())
    except GatewayError as error:
        return (type(error), error.message, error.retry_after, {k: v for k, v in error.metadata.items() if k != "token_id"})


def figures(answer):
    if hasattr(answer, "held_nanos") and hasattr(answer, "prices"):
        rates = [price.rates and price.rates.to_json() for price in answer.prices]
        return (answer.held_nanos, answer.max_output_tokens, answer.lease, rates, answer.cost_nanos({"input": 3, "output": 4}))
    if hasattr(answer, "delivered"):
        return (answer.delivered, answer.state, answer.cost_nanos, answer.remaining_nanos)
    if hasattr(answer, "total_tokens"):
        recent = sorted((call.model, call.tokens, call.amount_nanos, call.status) for call in answer.recent)
        return (
            answer.status,
            answer.prompt_tokens,
            answer.total_tokens,
            answer.amount_spent_nanos,
            answer.max_amount_nanos,
            answer.remaining_nanos,
            answer.held_nanos,
            answer.models,
            recent,
        )
    return answer


def story(gateway: Gateway) -> list[object]:
    """Everything that a service can meet, one after the other."""
    ask = {"model": MODEL, "input_tokens": 10, "max_output_tokens": 20}
    seen: list[object] = []
    ids = [uuid7() for _ in range(12)]
    for token in (*TOKENS, "nobody-has-this"):
        seen.append(told(lambda token=token: gateway.check(token, model=MODEL) > 0))
        seen.append(told(lambda token=token: gateway.validate(token, model="unpriced", input_tokens=1)))
    for question in (
        {"input_tokens": 2_000, "max_output_tokens": 1},
        {"input_tokens": 10},
        {"input_tokens": 10, "input_unbounded": True},
        {"input_tokens": 10, "unbounded_features": ["web_search"]},
        {"input_text": ["Hello", "there"], "max_output_tokens": 5, "choices": 2},
        {"input_tokens": 1, "max_output_tokens": 1, "candidates": [("demo", MODEL), ("demo", "unpriced")]},
    ):
        seen.append(told(lambda question=question: gateway.validate("soft-token", model=MODEL, **question)))
        with_id = {"request_id": ids.pop()} | question
        seen.append(told(lambda with_id=with_id: gateway.validate(SECRET, model=MODEL, **with_id)))
        seen.append(told(lambda with_id=with_id: gateway.record_usage(with_id["request_id"], outcome=Outcome.RELEASED)))
    first, second = ids.pop(), ids.pop()
    seen.append(told(lambda: gateway.validate(SECRET, request_id=first, **ask)))
    seen.append(told(lambda: gateway.validate(SECRET, request_id=first, **ask)))
    seen.append(told(lambda: gateway.validate(SECRET, request_id=first, **(ask | {"input_tokens": 11}))))
    seen.append(told(lambda: gateway.validate(SECRET, request_id=second, model=MODEL, input_tokens=960, max_output_tokens=20)))
    seen.append(told(lambda: gateway.usage(SECRET, details=True)))
    seen.append(told(lambda: gateway.renew(first, ids[0]) == {first}))
    seen.append(told(lambda: gateway.record_usage(first, input_tokens=10, output_tokens=5)))
    seen.append(told(lambda: gateway.record_usage(first, input_tokens=10, output_tokens=5)))
    seen.append(told(lambda: gateway.record_usage(first, input_tokens=10, output_tokens=6)))
    seen.append(told(lambda: gateway.record_usage(ids[0], input_tokens=1)))
    for terms in (
        {"usage": {"input": -5}},
        {"usage": {"output": 4, "reasoning": 2}, "input_tokens": 3, "source": Source.PROVIDER},
        {"outcome": Outcome.SETTLED_AT_HOLD},
        {"input_tokens": 900, "source": Source.ESTIMATED},
    ):
        call = gateway.validate("free-token", **ask)
        seen.append(told(lambda call=call, terms=terms: gateway.record_usage(call, **terms)))
    with pytest.raises(KeyError), gateway.call(SECRET, **ask) as silent:
        raise KeyError
    seen.append(figures(silent.receipt))
    for token in (*TOKENS, "nobody-has-this"):
        seen.append(told(lambda token=token: gateway.usage(token, details=True)))
    return seen


def test_the_fake_and_the_real_gateway_tell_the_same_story(tmp_path):
    with real_auth(tmp_path) as auth, FakeGateway() as fake:
        fill_real(auth)
        fill(fake)
        with auth.gateway(timeout=5.0) as real:
            expected, found = story(real), story(fake)
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert one == other, f"step {number}"
    assert (AlreadyExists, "this call was already reported, with other figures; nothing was changed", None, {}) in found
    assert sum(isinstance(step, tuple) and isinstance(step[0], type) for step in found) > 15  # refusals of many kinds
    assert any(step[:1] == (TokenExpired,) for step in found if isinstance(step, tuple))


async def test_the_asyncio_fake_behaves_like_the_other_one():
    auth = MemoryAuth()
    async with fill(AsyncFakeGateway(auth=auth)) as gateway:
        assert isinstance(gateway, AsyncGateway)
        async with gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20) as call:
            call.usage(input_tokens=10, output_tokens=5)
        assert call.receipt.cost_nanos == 15 * TOKEN_PRICE
        assert (await gateway.usage(SECRET)).amount_spent_nanos == 15 * TOKEN_PRICE
        assert await gateway.renew(call.grant) == frozenset()
        with pytest.raises(NotFound):
            await gateway.record_usage(uuid7(), input_tokens=1)
        gateway.away = True
        with pytest.raises(AuthUnavailable):
            await gateway.check(SECRET)
        gateway.away = False
        assert await gateway.check(SECRET) == 1


def test_an_outage_of_the_fake_keeps_reports_until_it_ends():
    with fill(FakeGateway()) as gateway:
        grant = gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20)
        gateway.away = True
        assert not gateway.record_usage(grant, input_tokens=10).delivered
        with pytest.raises(AuthUnavailable):
            gateway.validate(SECRET, model=MODEL, input_tokens=10)
        gateway.away = False
        assert gateway.flush() == []
        assert gateway.calls[grant.request_id].cost_nanos == 10 * TOKEN_PRICE


def test_a_lease_of_the_fake_ends_when_its_time_has_passed():
    with fill(FakeGateway()) as gateway:
        grant = gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20)
        gateway.skip(599)
        gateway.renew(grant)
        gateway.skip(599)
        assert gateway.calls[grant.request_id].state == "admitted"
        gateway.skip(1)
        assert gateway.calls[grant.request_id].state == "expired"
        assert gateway.usage(SECRET).amount_spent_nanos == 30 * TOKEN_PRICE
        assert gateway.record_usage(grant, input_tokens=10).cost_nanos == 10 * TOKEN_PRICE
        assert gateway.usage(SECRET).remaining_nanos == DOLLAR - 10 * TOKEN_PRICE


def test_the_fake_has_no_rights_beyond_its_own_calls():
    with fill(FakeGateway()) as gateway, pytest.raises(PermissionDenied, match="record_unadmitted"):
        gateway.record_usage(uuid7(), input_tokens=1, token_id=1)


def test_a_fake_explains_nothing_and_says_so():
    with pytest.raises(InvalidArgument, match="dry_run"):
        fill(MemoryAuth()).validate(pb.ValidateTokenRequest(token=SECRET, request_model=MODEL, dry_run=True))
