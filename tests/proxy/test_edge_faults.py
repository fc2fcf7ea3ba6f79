"""Faults of a provider: what the caller gets, what is charged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.metering import StreamMeter
from tests.proxy.edge_harness import KEY, Edge, chat, head, items, running_edge

RELEASED, SETTLED, HOLD = pb.OUTCOME_RELEASED, pb.OUTCOME_SETTLED, pb.OUTCOME_SETTLED_AT_HOLD
ESTIMATED, NONE = pb.USAGE_SOURCE_ESTIMATED, pb.USAGE_SOURCE_NONE


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running_edge(upstream_timeouts=(0.5, 0.5, 0.5)) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "status", "code", "outcome"),
    [
        ("silent", 504, "upstream_timeout", HOLD),
        ("headers-only", 504, "upstream_timeout", SETTLED),
        ("reset", 502, "upstream_error", HOLD),
        ("close", 502, "upstream_error", HOLD),
        ("html", 502, "upstream_error", SETTLED),
        ("no-content", 502, "upstream_error", SETTLED),
        ("bad-gzip", 502, "upstream_error", SETTLED),
        ("huge-header", 502, "upstream_error", HOLD),
        ("redirect", 502, "upstream_error", RELEASED),
        ("status-400", 400, None, RELEASED),
        ("status-404", 404, None, RELEASED),
        ("status-422", 422, None, RELEASED),
        ("status-401", 502, "upstream_credentials", RELEASED),
        ("status-403", 502, "upstream_credentials", RELEASED),
        ("status-429", 429, None, RELEASED),
        ("status-500", 502, "upstream_error", RELEASED),
        ("status-503", 502, "upstream_error", RELEASED),
        ("status-529", 502, "upstream_error", RELEASED),
    ],
)
async def test_a_fault_before_the_first_byte_is_a_status(
    edge: Edge, model: str, status: int, code: str | None, outcome: int, stream: bool
) -> None:
    async with edge.post(chat(f"mock-{model}", stream=stream)) as response:
        body = json.loads(await response.read())
    assert response.status == status, body
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if code:
        assert error["code"] == code
    assert response.headers["x-request-id"]
    settlement = await edge.settled()
    assert settlement.outcome == outcome
    assert settlement.source == (NONE if outcome == RELEASED else ESTIMATED)
    if model == "status-429":
        assert response.headers["Retry-After"] == "7"


async def test_an_answer_that_is_not_json_is_an_error(edge: Edge) -> None:
    async with edge.post(chat("mock-bad-json")) as response:
        assert response.status == 502
    assert (await edge.settled()).outcome == SETTLED


async def test_what_is_not_json_in_a_stream_passes_as_it_is(edge: Edge) -> None:
    async with edge.post(chat("mock-bad-json", stream=True)) as response:
        text = (await response.read()).decode()
    assert 'data: {"id": "x", "choices": [\n\n' in text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_broken_framing_is_an_error_and_never_a_normal_end(edge: Edge, stream: bool) -> None:
    async with edge.post(chat("mock-bad-chunk", stream=stream)) as response:
        text = (await response.read()).decode()
    assert '"error"' in text
    assert "[DONE]" not in text
    settlement = await edge.settled()
    assert settlement.source == ESTIMATED
    assert settlement.outcome in {SETTLED, HOLD}  # whether the head could be read depends on how the bytes were cut


async def test_a_provider_that_is_not_there_costs_nothing(edge: Edge) -> None:
    await edge.provider.stop()
    async with edge.post(chat()) as response:
        assert response.status == 502
    settlement = await edge.settled()
    assert settlement.outcome == RELEASED
    assert settlement.error_code == "not_sent"
    assert len(json.loads(settlement.attempts_json)) == 3
    assert response.headers["x-gateway-attempts"] == "3"


@pytest.mark.parametrize("model", ["cut", "cut-fin", "hang"])
async def test_a_stream_that_breaks_off_ends_with_an_error_event_and_is_charged_as_far_as_it_came(
    edge: Edge, model: str
) -> None:
    async with edge.post(chat(f"mock-{model}", "tokens:20 chunks:20", stream=True)) as response:
        text = (await response.read()).decode()
    assert response.status == 200
    assert "[DONE]" not in text
    last = [event for event in text.split("\n\n") if event][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] in {"upstream_error", "upstream_timeout"}
    settlement = await edge.settled()
    assert settlement.outcome == SETTLED
    assert settlement.source == ESTIMATED
    assert abs(items(settlement)["output"] - edge.provider.calls[0].tokens_generated) <= 2


@pytest.mark.parametrize("model", ["cut", "cut-fin", "short", "hang"])
async def test_an_answer_in_one_piece_that_breaks_off_is_an_error_and_is_charged_as_far_as_it_came(
    edge: Edge, model: str
) -> None:
    async with edge.post(chat(f"mock-{model}", "tokens:20")) as response:
        assert response.status in {502, 504}
    settlement = await edge.settled()
    assert settlement.outcome == SETTLED
    assert settlement.source == ESTIMATED
    assert items(settlement)["input"] > 0


async def test_an_error_event_of_the_provider_passes_and_the_call_is_charged_as_far_as_it_came(edge: Edge) -> None:
    async with edge.post(chat("mock-stream-error", "tokens:20 chunks:20", stream=True)) as response:
        text = (await response.read()).decode()
    assert text.count('"error"') == 1
    settlement = await edge.settled()
    assert settlement.source == ESTIMATED
    assert settlement.error_code == "upstream_error"


async def test_a_compressed_answer_is_unpacked(edge: Edge) -> None:
    async with edge.post(chat("mock-gzip", "tokens:20")) as response:
        assert (await response.json())["usage"]["completion_tokens"] == 20
    assert "Content-Encoding" not in response.headers
    assert items(await edge.settled())["output"] == 20


@pytest.mark.parametrize(
    ("model", "outcome"),
    [
        ("usage-negative", HOLD),
        ("usage-text", HOLD),
        ("usage-float", HOLD),
        ("usage-huge", HOLD),
        ("usage-partial", SETTLED),
        ("usage-null", SETTLED),
        ("no-usage", SETTLED),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_usage_that_cannot_be_believed_is_never_free(edge: Edge, model: str, outcome: int, stream: bool) -> None:
    async with edge.post(chat(f"mock-{model}", "tokens:20", stream=stream)) as response:
        assert response.status == 200
        await response.read()
    settlement = await edge.settled()
    assert settlement.outcome == outcome
    assert settlement.source == (pb.USAGE_SOURCE_PROVIDER if outcome == HOLD else ESTIMATED)  # by which auth counts it
    if outcome == SETTLED:
        assert 16 <= items(settlement)["output"] <= 24


@pytest.mark.parametrize("model", ["usage-everywhere", "usage-unasked"])
async def test_usage_that_is_told_more_than_once_counts_once(edge: Edge, model: str) -> None:
    async with edge.post(chat(f"mock-{model}", "tokens:20", stream=True)) as response:
        await response.read()
    settlement = await edge.settled()
    assert settlement.source == pb.USAGE_SOURCE_PROVIDER
    assert items(settlement)["output"] == 20


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["echo", "echo-error"])
async def test_the_providers_key_never_comes_back(edge: Edge, model: str, stream: bool) -> None:
    async with edge.post(chat(f"mock-{model}", stream=stream)) as response:
        seen = (await response.read()).decode() + str(response.headers)
    assert not [at for at in range(len(KEY) - 7) if KEY[at : at + 8] in seen], seen


async def test_a_fault_of_our_own_in_a_stream_cuts_it_and_is_still_charged(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = StreamMeter.feed

    def broken(meter: StreamMeter, data: bytes) -> bytes:
        if meter.output_estimate() >= 5:
            raise ZeroDivisionError
        return whole(meter, data)

    monkeypatch.setattr(StreamMeter, "feed", broken)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with edge.post(chat(prompt="tokens:20 chunks:20 seconds:0.2", stream=True)) as response:
            await response.read()
    settlement = await edge.settled()
    assert settlement.error_code == "interrupted"
    assert items(settlement)["output"] >= 5


@pytest.mark.parametrize("model", ["cut", "cut-fin", "hang", "bad-chunk", "stream-error"])
async def test_the_connection_goes_on_after_a_stream_that_broke_off(edge: Edge, model: str) -> None:
    """The end of the answer says nothing of a close, so the caller's next request comes over the same connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    body = json.dumps(chat(f"mock-{model}", "tokens:20 chunks:20", stream=True)).encode()
    for _ in range(10):
        writer.write(head("POST", "/v1/chat/completions", f"Content-Length: {len(body)}") + body)
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"onnection: close" not in answer
            assert b'"error"' in await reader.readuntil(b"\r\n0\r\n\r\n")
    writer.close()
