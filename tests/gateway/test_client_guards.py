"""Guards of handlers: who may not pay does not get in, and what was used is booked."""

from __future__ import annotations

import inspect
import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from gateway import errors, http_errors
from gateway.client import aiohttp_guard
from gateway.client.aiohttp_guard import call_of, guard
from gateway.client.grpc_guard import async_guarded, guarded
from gateway.client.testing import AsyncFakeGateway, FakeGateway
from gateway.rpc.status import from_status
from services.proxy import errors as edge_errors

TOKEN = "a-token-for-tests"


def fill(fake):
    fake.add_token(TOKEN, max_amount="1.00")
    fake.add_token("spent-token", max_amount="0")
    fake.add_token("off-token", enabled=False)
    fake.set_price("echo", input="1000", output="1000")
    return fake


def terms_of(request):
    return {"model": "echo", "input_text": request.decode(), "max_output_tokens": 20}


class Threads:
    """A servicer on threads."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.ran = 0

    @guarded(lambda self: self.gateway, terms_of)
    def Say(self, request, context, call):
        self.ran += 1
        call.usage(input_tokens=len(request), output_tokens=1)
        return request.upper()

    @guarded(lambda self: self.gateway, terms_of)
    def Stream(self, request, context, call):
        self.ran += 1
        for number in range(3):
            call.usage(input_tokens=len(request), output_tokens=number + 1)
            yield request

    @guarded(lambda self: self.gateway, terms_of)
    def Fail(self, request, context, call):
        call.release()
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")


class Loop:
    """The same on asyncio."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.ran = 0

    @async_guarded(lambda self: self.gateway, terms_of)
    async def Say(self, request, context, call):
        self.ran += 1
        call.usage(input_tokens=len(request), output_tokens=1)
        return request.upper()

    @async_guarded(lambda self: self.gateway, terms_of)
    async def Stream(self, request, context, call):
        self.ran += 1
        for number in range(3):
            call.usage(input_tokens=len(request), output_tokens=number + 1)
            yield request

    @async_guarded(lambda self: self.gateway, terms_of)
    async def Fail(self, request, context, call):
        call.release()
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")


def handlers(servicer):
    return grpc.method_handlers_generic_handler(
        "echo",
        {
            "Say": grpc.unary_unary_rpc_method_handler(servicer.Say),
            "Stream": grpc.unary_stream_rpc_method_handler(servicer.Stream),
            "Fail": grpc.unary_unary_rpc_method_handler(servicer.Fail),
        },
    )


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


REFUSED = [
    ((), "UNAUTHENTICATED", "TOKEN_UNKNOWN"),
    (bearer("nobody"), "UNAUTHENTICATED", "TOKEN_UNKNOWN"),
    (bearer("off-token"), "PERMISSION_DENIED", "TOKEN_DISABLED"),
    (bearer("spent-token"), "FAILED_PRECONDITION", "BUDGET_EXHAUSTED"),
]


def test_a_method_on_threads_runs_for_those_who_can_pay_and_is_charged():
    with fill(FakeGateway()) as gateway, ThreadPoolExecutor(2) as pool:
        servicer = Threads(gateway)
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((handlers(servicer),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            say, stream, fail = (
                channel.unary_unary("/echo/Say"),
                channel.unary_stream("/echo/Stream"),
                channel.unary_unary("/echo/Fail"),
            )
            for metadata, code, reason in REFUSED:
                with pytest.raises(grpc.RpcError) as refused:
                    say(b"abc", metadata=metadata, timeout=5)
                assert (refused.value.code().name, from_status(refused.value).reason) == (code, reason)
            assert servicer.ran == 0
            assert say(b"abc", metadata=bearer(TOKEN), timeout=5) == b"ABC"
            assert list(stream(b"abc", metadata=bearer(TOKEN), timeout=5)) == [b"abc"] * 3
            with pytest.raises(grpc.RpcError, match="no such thing"):
                fail(b"abc", metadata=bearer(TOKEN), timeout=5)
            gateway.away = True
            with pytest.raises(grpc.RpcError) as away:
                say(b"abc", metadata=bearer(TOKEN), timeout=5)
            assert (away.value.code(), from_status(away.value).retry_after) == (grpc.StatusCode.UNAVAILABLE, 1.0)
            gateway.away = False
        server.stop(None).wait()
        booked = [(call.state.value, call.cost_nanos // 1_000_000) for call in gateway.calls.values()]
        assert booked == [("settled", 4), ("settled", 6), ("released", 0)]


async def test_a_method_on_asyncio_runs_for_those_who_can_pay_and_is_charged():
    async with fill(AsyncFakeGateway()) as gateway:
        servicer = Loop(gateway)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handlers(servicer),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            say, stream, fail = (
                channel.unary_unary("/echo/Say"),
                channel.unary_stream("/echo/Stream"),
                channel.unary_unary("/echo/Fail"),
            )
            for metadata, code, reason in REFUSED:
                for ask in (say(b"abc", metadata=metadata, timeout=5), stream(b"abc", metadata=metadata, timeout=5).read()):
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await ask
                    assert (refused.value.code().name, from_status(refused.value).reason) == (code, reason)
            assert servicer.ran == 0
            assert await say(b"abc", metadata=bearer(TOKEN), timeout=5) == b"ABC"
            assert [answer async for answer in stream(b"abc", metadata=bearer(TOKEN), timeout=5)] == [b"abc"] * 3
            with pytest.raises(grpc.aio.AioRpcError, match="no such thing"):
                await fail(b"abc", metadata=bearer(TOKEN), timeout=5)
        await server.stop(None)
        booked = [(call.state.value, call.cost_nanos // 1_000_000) for call in gateway.calls.values()]
        assert booked == [("settled", 4), ("settled", 6), ("released", 0)]


@pytest.fixture
async def echo():
    """An aiohttp service behind the guard: its URL and its gateway."""

    async def terms(request):
        return None if request.path == "/open" else terms_of(await request.read()) | {"client_ip": request.remote}

    async def say(request):
        call_of(request).usage(input_tokens=len(await request.read()), output_tokens=1)
        return web.Response(text="said")

    async def stream(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"said")
        call_of(request).usage(input_tokens=3, output_tokens=1)
        return response

    async def fail(request):
        raise web.HTTPBadGateway

    async with fill(AsyncFakeGateway()) as gateway:
        app = web.Application(middlewares=[guard(gateway, terms)])
        app.add_routes([web.post("/say", say), web.post("/stream", stream), web.post("/fail", fail), web.get("/open", fail)])
        async with TestServer(app, host="127.0.0.1") as server, ClientSession(server.make_url("/")) as session:
            yield gateway, session


def headers(token):
    return {"Authorization": f"Bearer {token}"}


async def test_a_handler_runs_for_those_who_can_pay_and_is_charged(echo):
    gateway, session = echo
    for token, status, code in (
        ("nobody", 401, "invalid_api_key"),
        ("off-token", 401, "token_disabled"),
        ("spent-token", 402, "insufficient_quota"),
    ):
        async with session.post("/say", data=b"abc", headers=headers(token)) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (status, code)
    async with session.post("/say", data=b"abc") as response:
        assert response.status == 401
    assert gateway.calls == {}
    async with session.post("/say", data=b"abc", headers=headers(TOKEN)) as response:
        assert (response.status, response.headers["x-request-id"]) == (200, next(iter(gateway.calls)))
    async with session.post("/stream", data=b"abc", headers=headers(TOKEN)) as response:
        assert await response.read() == b"said"
    async with session.post("/fail", data=b"abc", headers=headers(TOKEN)) as response:
        assert response.status == 502
    async with session.get("/open") as response:
        assert response.status == 502
    booked = [(call.state.value, call.cost_nanos // 1_000_000, call.source.value) for call in gateway.calls.values()]
    assert booked == [("settled", 4, "counted"), ("settled", 4, "counted"), ("settled", 39, "estimated")]


async def test_a_handler_does_not_run_without_auth(echo):
    gateway, session = echo
    gateway.away = True
    async with session.post("/say", data=b"abc", headers=headers(TOKEN)) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert gateway.calls == {}


async def test_a_fault_of_the_service_itself_is_not_told_as_the_callers(caplog):
    async def terms(request):
        return {"model": "echo"}  # without a bound: auth would refuse it

    async with fill(AsyncFakeGateway()) as gateway:
        app = web.Application(middlewares=[guard(gateway, terms)])
        async with (
            TestServer(app, host="127.0.0.1") as server,
            ClientSession(server.make_url("/")) as session,
            session.post("/", headers=headers(TOKEN)) as response,
        ):
            assert response.status == 503
            assert json.loads(await response.text())["error"]["code"] == "auth_unavailable"
    assert "input_tokens" in caplog.text


ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.GatewayError)]


@pytest.mark.parametrize("kind", ALL)
def test_a_guard_tells_of_each_reason_exactly_as_the_edge_does(kind, monkeypatch):
    """Status, type, code, message and whether and when to try again: an SDK must not see who answers."""
    monkeypatch.setattr(http_errors.random, "uniform", lambda low, high: high)  # delays for held money are spread
    error = kind("what to do", retry_after=1.5, metadata={"param": "model"})
    guarded_, edge = aiohttp_guard.refusal(error), edge_errors.answer(error)
    assert guarded_.status == edge.status
    assert json.loads(guarded_.body) == json.loads(edge.body)
    for name in ("Retry-After", "retry-after-ms", "x-should-retry", "Content-Type"):
        assert guarded_.headers.get(name) == edge.headers.get(name), name
