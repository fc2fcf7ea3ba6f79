"""One call through the edge: plain and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gateway.stubs.auth.v1 import auth_pb2 as pb
from tests.proxy.edge_harness import KEY, TOKEN, Edge, chat, items, running_edge


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running_edge() as running:
        yield running


async def test_a_plain_call_is_answered_as_the_provider_answered_and_is_settled_with_its_usage(edge: Edge) -> None:
    async with edge.post(chat(prompt="tokens:7 prompt:11")) as response:
        body = await response.read()
    assert response.status == 200, body
    answer = json.loads(body)
    assert answer["usage"] == {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    settlement = await edge.settled()
    assert settlement.outcome == pb.OUTCOME_SETTLED
    assert settlement.source == pb.USAGE_SOURCE_PROVIDER
    assert items(settlement) == {"input": 11, "output": 7}
    assert settlement.served.provider == "mock"
    assert settlement.status == 200
    assert response.headers["x-request-id"] == response.headers["request-id"] == settlement.request_id
    assert response.headers["x-gateway-cost"] == "0.000025"
    assert response.headers["x-gateway-provider"] == "mock"
    assert response.headers["Server"] == "gateway"


async def test_a_stream_passes_byte_for_byte_without_the_usage_chunk_that_nobody_asked_for(edge: Edge) -> None:
    async with edge.post(chat(prompt="tokens:20 chunks:10", stream=True)) as response:
        text = (await response.read()).decode()
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = [event for event in text.split("\n\n") if event]
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert all(chunk["choices"] for chunk in chunks)
    settlement = await edge.settled()
    assert settlement.source == pb.USAGE_SOURCE_PROVIDER
    assert items(settlement)["output"] == 20
    assert json.loads(edge.provider.calls[0].body)["stream_options"] == {"include_usage": True}


async def test_the_usage_chunk_reaches_a_caller_who_asked_for_it(edge: Edge) -> None:
    async with edge.post(chat(stream=True, stream_options={"include_usage": True})) as response:
        text = (await response.read()).decode()
    assert '"choices":[]' in text
    assert await edge.settled()


@pytest.mark.parametrize("stream", [False, True])
async def test_the_settlement_is_on_file_before_the_last_byte_leaves(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    order: list[str] = []
    edge.outbox.on_append = lambda settlement: order.append("settled")
    real = web.StreamResponse.write_eof

    async def write_eof(response: web.StreamResponse, data: bytes = b"") -> None:
        if response.headers.get("Server") == "gateway":  # the provider of the tests answers in this process, too
            order.append("end")
        await real(response, data)

    monkeypatch.setattr(web.StreamResponse, "write_eof", write_eof)
    async with edge.post(chat(prompt="tokens:5 chunks:5 seconds:0.3", stream=stream)) as response:
        body = await response.read()
    assert body.count(b"[DONE]") == stream
    assert order[:2] == ["settled", "end"]  # aiohttp ends a stream that has ended once more, which does nothing


async def test_the_providers_key_goes_out_and_the_clients_token_does_not(edge: Edge) -> None:
    async with edge.post(chat(), **{"x-api-key": TOKEN, "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4"}) as response:
        assert response.status == 200
    call = edge.provider.calls[0]
    names = {name.lower() for name, _ in call.headers}
    assert names == {"host", "accept", "accept-encoding", "content-type", "user-agent", "authorization", "content-length"}
    assert ("Authorization", f"Bearer {KEY}") in call.headers
    assert TOKEN not in str(call.headers) + call.body


@pytest.mark.parametrize(("model", "stream"), [("mock", False), ("mock", True), ("mock-status-400", False), ("mock-cut", True)])
async def test_the_end_of_an_answer_waits_until_its_settlement_outlives_the_process(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, model: str, stream: bool
) -> None:
    asked, kept = asyncio.Event(), asyncio.Event()

    async def wait(request_id: str) -> None:
        assert edge.outbox.of(request_id)
        asked.set()
        await kept.wait()

    monkeypatch.setattr(edge.outbox, "kept", wait)

    async def call() -> bytes:
        async with edge.post(chat(model, stream=stream)) as response:
            return await response.read()

    task = asyncio.create_task(call())
    async with asyncio.timeout(5):
        await asked.wait()
        await asyncio.sleep(0.1)
        assert not task.done()
        kept.set()
        await task
