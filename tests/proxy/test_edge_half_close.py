"""Callers who say that they send no more, and wait for their answer; and callers who have gone away, which looks the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from gateway.stubs.auth.v1 import auth_pb2 as pb
from tests.proxy.edge_harness import TOKEN, Edge, chat, head, items, running_edge, until


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running_edge() as running:
        yield running


def call(**more: object) -> bytes:
    body = json.dumps(chat(**more)).encode()  # type: ignore[arg-type]
    return head("POST", "/v1/chat/completions", f"Content-Length: {len(body)}") + body


async def half_closed(edge: Edge, sent: bytes, *, after: float = 0.0) -> bytes:
    """All that comes back to who sends this and then ends his side of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(sent)
    await asyncio.sleep(after)
    writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")


@pytest.mark.parametrize("after", [0.0, 0.1], ids=["at once", "meanwhile"])
async def test_a_plain_call_is_answered_whole_and_charged_by_its_usage(edge: Edge, after: float) -> None:
    answer = await half_closed(edge, call(prompt="tokens:7 prompt:11 seconds:0.7"), after=after)
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 7
    settlement = await edge.settled()
    assert settlement.source == pb.USAGE_SOURCE_PROVIDER
    assert items(settlement) == {"input": 11, "output": 7}


@pytest.mark.parametrize("after", [0.0, 0.1, 0.4], ids=["at once", "before the first event", "in the middle"])
async def test_a_stream_is_sent_whole_and_charged_by_its_usage(edge: Edge, after: float) -> None:
    answer = await half_closed(edge, call(prompt="tokens:20 chunks:20 seconds:0.8", stream=True), after=after)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"data: [DONE]\n\n" in answer
    assert answer.endswith(b"0\r\n\r\n")
    settlement = await edge.settled()
    assert settlement.source == pb.USAGE_SOURCE_PROVIDER
    assert items(settlement)["output"] == 20


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head("GET", "/v1/models"), b"200"),
        (head("GET", "/v1/token/usage"), b"200"),
        (head("GET", "/openapi.json"), b"200"),
        (head("GET", "/healthz"), b"200"),
        (head("GET", "/admin/tokens"), b"200"),
        (head("GET", "/nothing"), b"404"),
        (head("POST", "/v1/chat/completions", "Content-Length: 2") + b"{}", b"400"),
        (b"GET /v1/models HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n" % TOKEN.encode(), b"200"),
    ],
)
async def test_each_route_answers(edge: Edge, sent: bytes, status: bytes) -> None:
    assert (await half_closed(edge, sent))[9:12] == status


async def test_all_requests_that_came_before_the_end_are_answered(edge: Edge) -> None:
    answer = await half_closed(edge, head("GET", "/healthz") * 5 + call() + head("GET", "/nothing"))
    assert answer.count(b"HTTP/1.1 200") == 6
    assert answer.count(b"HTTP/1.1 404") == 1


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HT", head("POST", "/v1/chat/completions", "Content-Length: 5") + b"{"])
async def test_an_end_without_a_whole_request_ends_the_connection(edge: Edge, sent: bytes) -> None:
    async with asyncio.timeout(3):
        await half_closed(edge, sent)
    await until(lambda: edge.server.open_connections == 0)
    assert edge.provider.calls == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_went_away_entirely_is_noticed_before_the_answer_begins(edge: Edge, stream: bool) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(call(model="mock-silent", stream=stream))
    await until(lambda: bool(edge.provider.calls))
    writer.close()
    await until(lambda: edge.provider.calls[0].saw_abort, seconds=1.5)
    assert (await edge.settled()).error_code == "client_closed"
    assert edge.server.open_connections == 0
