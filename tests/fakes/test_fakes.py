"""The fakes do what their tables say; a fake that lies would make every other test lie."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import aiohttp
import pytest

from tests.fakes.behaviours import BEHAVIOURS
from tests.fakes.call import read_ledger
from tests.fakes.chaos import Chaos, Fault
from tests.fakes.provider import Provider

QUICK = sorted(set(BEHAVIOURS) - {"silent", "headers-only", "hang", "drip"})


def chat(model: str, prompt: str, **fields: object) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}


async def test_a_plain_call_is_answered_and_written_down(tmp_path):
    ledger = tmp_path / "ledger"
    async with Provider(ledger=ledger) as provider, aiohttp.ClientSession() as session:
        body = chat("mock-plain", "nonce:one tokens:7 unique:1", max_tokens=5)
        async with session.post(provider.base_url + "/chat/completions", json=body, headers={"X-Seen": "yes"}) as response:
            answer = await response.json()
    assert answer["usage"]["completion_tokens"] == 5
    [call] = read_ledger(ledger)
    assert (call.nonce, call.tokens_generated, call.usage_told) == ("one", 5, answer["usage"])
    assert ("X-Seen", "yes") in call.headers
    assert json.loads(call.body) == body
    assert call.complete


async def test_a_stream_has_its_chunks_and_the_usage_that_was_asked_for():
    async with Provider() as provider, aiohttp.ClientSession() as session:
        body = chat("x", "chunks:4 tokens:8", stream=True, stream_options={"include_usage": True})
        async with session.post(provider.base_url + "/chat/completions", json=body) as response:
            events = [line[6:] for line in (await response.text()).splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    parsed = [json.loads(event) for event in events]
    assert parsed[-1]["choices"] == [] and parsed[-1]["usage"]["completion_tokens"] == 8
    assert len([event for event in parsed if event["choices"] and event["choices"][0]["delta"].get("content")]) == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", QUICK)
async def test_each_behaviour_ends_and_is_written_down(name, stream):
    async with Provider() as provider, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        try:
            async with session.post(
                provider.base_url + "/chat/completions",
                json=chat(f"mock-{name}", "nonce:n", stream=stream),
                allow_redirects=False,
            ) as response:
                await response.read()
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0)
        [call] = provider.named("n")
        assert call.ended_at > 0
        assert not call.saw_abort or name == "huge-header"


async def test_a_caller_who_leaves_is_seen():
    async with Provider() as provider, aiohttp.ClientSession() as session:
        body = chat("x", "nonce:n chunks:100 tokens:100 seconds:20", stream=True)
        async with session.post(provider.base_url + "/chat/completions", json=body) as response:
            await response.content.readline()
            response.close()
        async with asyncio.timeout(2):
            await provider.ended(1)
        [call] = provider.named("n")
        assert call.saw_abort and call.tokens_generated < 50


async def echo_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(100):
            writer.write(piece)
    writer.close()


async def test_chaos_passes_stalls_swallows_and_cuts():
    server = await asyncio.start_server(echo_once, "127.0.0.1", 0)
    async with server, Chaos("127.0.0.1", server.sockets[0].getsockname()[1]) as chaos:
        reader, writer = await asyncio.open_connection("127.0.0.1", chaos.port)
        writer.write(b"a")
        assert await reader.read(1) == b"a"
        chaos.fault = Fault.STALL
        writer.write(b"b")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        chaos.fault = Fault.NONE
        assert await reader.read(1) == b"b"
        chaos.fault = Fault.SWALLOW_REPLIES
        writer.write(b"c")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        chaos.cut()
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
        writer.transport.abort()
        await asyncio.sleep(0)
        await chaos.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", chaos.port)).close()
        await chaos.accept()
        socket.create_connection(("127.0.0.1", chaos.port)).close()


async def test_only_loopback_sockets_open():
    with pytest.raises(AssertionError, match="only loopback"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
