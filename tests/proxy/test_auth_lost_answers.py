"""Calls of which auth and the proxy know different things: what was committed and not heard, and what is open and not known."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from gateway.errors import AuthUnavailable, Overloaded
from gateway.ids import uuid7
from tests.proxy.auth_harness import KEY, call, client_of, eventually

# What auth answers with before it does anything.
NOTHING_DONE = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}


@pytest.fixture
def pki(tmp_path):
    return tmp_path / "pki"


@pytest.mark.parametrize(
    "status",
    [one for one in grpc.StatusCode if one not in {grpc.StatusCode.OK, *NOTHING_DONE}],
    ids=lambda one: one.name,
)
async def test_what_auth_committed_and_could_not_say_is_taken_back(tmp_path, pki, status):
    """Whatever gRPC makes of an answer that does not come through, such as one above its limit: the call may be admitted."""
    async with client_of(tmp_path, pki) as gate:
        await gate.validate(call())
        gate.service.too_large = status
        request = call()
        with pytest.raises((AuthUnavailable, Overloaded)):
            await gate.validate(request)
        gate.service.too_large = None
        await eventually(lambda: gate.ledger.state(request.request_id) == "released")


async def test_a_call_that_stands_as_open_and_is_not_known_here_is_disowned(tmp_path, pki, monkeypatch):
    monkeypatch.setattr("services.proxy.auth_client.BEAT_INTERVAL", 0.05)
    async with client_of(tmp_path, pki) as gate:
        await gate.validate(known := call())
        gate.outbox.opened(known.request_id, KEY)
        await gate.validate(pending := call())
        gate.outbox.opened(pending.request_id, KEY)
        gate.service.open_request_ids = [known.request_id, pending.request_id, strange := uuid7()]
        await eventually(lambda: strange in gate.service.disowned)
        gate.service.open_request_ids = []
        assert set(gate.service.disowned) == {strange}
        await eventually(lambda: gate.service.beats > 5)
        count = len(gate.service.disowned)
        await asyncio.sleep(0.3)
        assert len(gate.service.disowned) <= count + 1  # it is said once for each time that it was asked
