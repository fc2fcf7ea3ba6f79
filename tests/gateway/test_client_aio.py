"""The asyncio client against a real auth over mutual TLS."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from gateway.client import AsyncGateway, Receipt, State
from gateway.errors import (
    AlreadyExists,
    AuthUnavailable,
    BudgetExhausted,
    BudgetReserved,
    FailedPrecondition,
    Overloaded,
    PermissionDenied,
    RequestExceedsBudget,
    RequestWithdrawn,
    TokenUnknown,
)
from gateway.ids import uuid7
from services.auth import wire
from tests.gateway.client_harness import real_auth
from tests.support.ledger import DOLLAR, MODEL, SECRET, TOKEN_PRICE, request_row, token_row


@pytest.fixture
def auth(tmp_path):
    with real_auth(tmp_path) as running:
        running.add_token(SECRET)
        yield running


@pytest.fixture
async def gateway(auth):
    async with auth.async_gateway(timeout=5.0) as client:
        yield client


async def until(check, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


async def test_a_call_is_granted_charged_and_told(auth, gateway):
    grant = await gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=90)
    assert grant.cost_nanos({"input": 10, "output": 20}) == 30 * TOKEN_PRICE
    receipt = await gateway.record_usage(grant, input_tokens=10, output_tokens=20)
    assert receipt == Receipt(grant.request_id, True, State.SETTLED, 30 * TOKEN_PRICE, DOLLAR - 30 * TOKEN_PRICE)
    with pytest.raises(AlreadyExists):
        await gateway.record_usage(grant, input_tokens=10, output_tokens=21)
    assert await gateway.check(SECRET, model=MODEL) == 1
    assert (await gateway.usage(SECRET)).total_tokens == 30
    with pytest.raises(TokenUnknown):
        await gateway.validate("nobody-has-this", model=MODEL, input_tokens=1)


async def test_a_block_settles_at_its_end_whatever_the_end_is(auth, gateway):
    async with gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20) as told:
        told.usage(input_tokens=10, output_tokens=5)
    assert told.receipt.cost_nanos == 15 * TOKEN_PRICE
    with pytest.raises(KeyError):
        async with gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20) as silent:
            raise KeyError
    assert request_row(auth.db, silent.request_id)["cost_nanos"] == 30 * TOKEN_PRICE
    async with gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20) as nothing:
        nothing.release()
    assert request_row(auth.db, nothing.request_id)["state"] == "released"


async def test_a_cancelled_block_is_charged_its_hold(auth, gateway):
    entered = asyncio.Event()
    calls = []

    async def work():
        async with gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20) as call:
            calls.append(call)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    row = request_row(auth.db, calls[0].request_id)
    assert (row["state"], row["cost_nanos"], row["error_code"]) == ("settled", 30 * TOKEN_PRICE, "CancelledError")


async def test_a_question_that_is_cancelled_leaves_no_hold(auth, gateway, monkeypatch):
    await gateway.check(SECRET)
    request_id = uuid7()
    monkeypatch.setattr("gateway.client.aio.uuid7", lambda: request_id)
    with auth.db.write():  # the ledger waits for the database, and so does the question
        task = asyncio.create_task(gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await gateway.flush(10.0) == []
    await until(lambda: token_row(auth.db)["held_nanos"] == 0)
    with pytest.raises((RequestWithdrawn, AlreadyExists)):
        await gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20, request_id=request_id)


async def test_tasks_that_race_for_a_budget_never_exceed_it(gateway):
    """$1.00, 150 calls of $0.01 at once: exactly 100 pass, once those that met held money have come back."""

    async def work():
        while True:
            try:
                async with gateway.call(SECRET, model="cent", input_tokens=0, max_output_tokens=16) as call:
                    call.usage(usage={"per_request": 1})
                return "passed"
            except BudgetReserved:
                await asyncio.sleep(0.05)
            except (BudgetExhausted, RequestExceedsBudget) as refusal:
                return refusal.reason

    outcomes = await asyncio.gather(*(work() for _ in range(150)))
    assert outcomes.count("passed") == 100
    books = await gateway.usage(SECRET)
    assert (books.amount_spent_nanos, books.held_nanos) == (DOLLAR, 0)


async def test_an_outage_fails_closed_and_what_was_used_meanwhile_is_booked_once(auth):
    async with auth.async_gateway(timeout=1.0) as gateway:
        grant = await gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20, timeout=5.0)
        auth.stop()
        started = time.monotonic()
        with pytest.raises(AuthUnavailable, match="nothing listens there"):
            await gateway.validate(SECRET, model=MODEL, input_tokens=1)
        assert time.monotonic() - started < 1.5
        assert not (await gateway.record_usage(grant, input_tokens=10, output_tokens=5, timeout=0.1)).delivered
        assert [item.request_id for item in await gateway.flush(0.05)] == [grant.request_id]
        auth.start()
        started = time.monotonic()
        assert await gateway.flush(5.0) == []
        assert time.monotonic() - started < 2.0
        assert await gateway.check(SECRET) == 1
    assert request_row(auth.db, grant.request_id)["cost_nanos"] == 15 * TOKEN_PRICE


async def test_a_report_that_is_cancelled_on_its_way_is_not_lost(auth):
    async with auth.async_gateway(timeout=5.0) as gateway:
        grant = await gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20)
        auth.stop()
        task = asyncio.create_task(gateway.record_usage(grant, input_tokens=10, output_tokens=5))
        await asyncio.sleep(0)
        assert [item.request_id for item in await gateway.flush(0.05)] == [grant.request_id]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        auth.start()
        assert await gateway.flush(5.0) == []
    assert request_row(auth.db, grant.request_id)["cost_nanos"] == 15 * TOKEN_PRICE


async def test_closing_says_what_was_not_delivered(auth, caplog):
    gateway = auth.async_gateway(timeout=0.1, max_pending=1)
    grant = await gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20, timeout=5.0)
    auth.stop()
    await gateway.record_usage(grant, input_tokens=10, output_tokens=5)
    with pytest.raises(Overloaded):
        await gateway.record_usage(uuid7(), input_tokens=1)
    with caplog.at_level(logging.ERROR):
        left = await gateway.close(0.1)
    assert [(item.request_id, item.reason) for item in left] == [(grant.request_id, "AUTH_UNAVAILABLE")]
    assert grant.request_id in caplog.text
    with pytest.raises(FailedPrecondition, match="closed"):
        await gateway.check(SECRET)
    auth.start()


async def test_a_refusal_in_the_background_is_told_by_flush(auth):
    async with auth.async_gateway(timeout=0.2) as gateway:
        auth.stop()
        await gateway.record_usage(unknown := uuid7(), input_tokens=1)
        auth.start()
        assert [(item.request_id, item.reason) for item in await gateway.flush(5.0)] == [(unknown, "NOT_FOUND")]


async def test_a_block_renews_its_lease(auth, gateway, monkeypatch):
    monkeypatch.setattr(wire, "SERVICE_LEASE_SECONDS", 1)

    def beats(request_id):
        return auth.db.query("SELECT lease_beat FROM requests WHERE request_id = ?", (request_id,))[0][0]

    async with gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20) as call:
        await until(lambda: beats(call.request_id) >= 2)
        assert await gateway.renew(call.grant, uuid7()) == {call.request_id}
        call.usage(input_tokens=1)


async def test_a_right_too_few_is_refused_with_the_command_that_gives_it(auth):
    auth.issue("reader", ("GetTokenUsage",))
    async with auth.async_gateway("reader", timeout=5.0) as reader:
        with pytest.raises(PermissionDenied, match="--allow-method ValidateToken"):
            await reader.validate(SECRET, model=MODEL, input_tokens=1)


async def test_the_environment_says_where_auth_is_and_who_we_are(auth):
    environment = {"GATEWAY_AUTH_ADDRESS": auth.address, "GATEWAY_IDENTITY_DIR": str(auth.folder / "billing")}
    async with AsyncGateway.from_env(environment, timeout=5.0) as gateway:
        assert await gateway.check(SECRET) == 1
