"""The proxy's own certificate is revoked: a stolen copy opens nothing, and no caller notices, as a new one is issued first."""

from __future__ import annotations

import asyncio
import shutil

import aiohttp
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity
from gateway.stubs.admin.v1 import identities_pb2
from gateway.stubs.admin.v1.identities_pb2_grpc import IdentityServiceStub
from gateway.stubs.auth.v1 import auth_pb2
from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceStub
from tests.suite.conftest import ADMIN_PASSWORD
from tests.suite.load import calls, paced_calls
from tests.suite.stack import wait_for


async def test_a_stolen_copy_of_the_proxys_certificate_opens_nothing_any_more(fresh):
    made = fresh("auth", "admin", "proxy")
    stack, token, over = made.stack, made.token(), asyncio.Event()
    stolen = stack.data.parent / "stolen"
    shutil.copytree(stack.data / "pki" / "proxy", stolen)
    address = f"127.0.0.1:{stack.auth_port}"
    with sync_channel(address, Identity.load(stolen), "auth") as channel:
        thief = AuthServiceStub(channel)
        thief.ListModels(auth_pb2.ListModelsRequest(), timeout=5)
        load = asyncio.create_task(paced_calls(stack.base_url, token, a_second=20, until=over.is_set, model="mock-plain"))
        await asyncio.to_thread(stack.gateway, "identity", "revoke", "proxy")
        with pytest.raises(grpc.RpcError) as refused:
            thief.ListModels(auth_pb2.ListModelsRequest(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await asyncio.sleep(1)
        over.set()
    told = await load
    assert {(one.status, one.whole) for one in told} == {(200, True)}


async def test_callers_of_a_proxy_that_is_revoked_are_told_that_the_gateway_is_away(fresh):
    made = fresh("auth", "admin", "proxy")
    stack, token = made.stack, made.token()
    assert [one.status for one in await calls(stack.base_url, token, 1, at_once=1, model="mock-plain")] == [200]
    until = Timestamp()
    until.GetCurrentTime()
    with sync_channel(f"127.0.0.1:{stack.admin_port}", Identity.load(stack.data / "pki" / "operator"), "admin") as channel:
        request = identities_pb2.RevokeIdentityRequest(name="proxy", issued_until=until)
        await asyncio.to_thread(IdentityServiceStub(channel).RevokeIdentity, request, timeout=10)
    assert [one.status for one in await calls(stack.base_url, token, 3, at_once=1, model="mock-plain")] == [503] * 3
    base, login = stack.base_url.removesuffix("/v1"), {"username": "admin", "password": ADMIN_PASSWORD}
    async with aiohttp.ClientSession() as session, session.post(f"{base}/auth/login", json=login) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "admin_unavailable")
    wait_for("the log", lambda: stack.log_tails(20_000).count("certificate of proxy is revoked") >= 4)
    await asyncio.to_thread(stack.gateway, "identity", "revoke", "proxy")
    await asyncio.sleep(2)
    assert [one.status for one in await calls(stack.base_url, token, 3, at_once=1, model="mock-plain")] == [200] * 3
