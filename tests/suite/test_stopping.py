"""SIGTERM to the edge: not ready at once, still open for a while, and no stream is cut."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import aiohttp
import pytest

from tests.suite.audit import audit, open_holds
from tests.suite.conftest import RATES
from tests.suite.load import call
from tests.suite.stack import wait_for

STREAMS = int(os.environ.get("GATEWAY_TEST_STREAMS", "10"))  # the full run: 50
SECONDS = float(os.environ.get("GATEWAY_TEST_STREAM_SECONDS", "4"))  # the full run: 20
LAME_DUCK = 1.5


@pytest.mark.timeout(120 + 3 * SECONDS)
async def test_a_stopping_edge_takes_calls_for_a_while_and_lets_every_stream_end(fresh):
    suite = fresh("auth", "proxy", GATEWAY_LAME_DUCK=str(LAME_DUCK))
    token = suite.token(max_amount=100)
    chunks = int(SECONDS * 10)
    prompt = f"unique:1 tokens:{chunks} chunks:{chunks} seconds:{SECONDS}"
    statuses: list[int] = []
    closing: list[str | None] = []
    url, headers = f"{suite.stack.base_url}/chat/completions", {"Authorization": f"Bearer {token}"}
    body = {"model": "gpt-test", "messages": [{"role": "user", "content": "unique:1 tokens:3"}]}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
        streams = [
            asyncio.create_task(call(session, suite.stack.base_url, token, model="gpt-test", stream=True, prompt=prompt))
            for _ in range(STREAMS)
        ]
        await asyncio.to_thread(wait_for, "all are upstream", lambda: len(suite.provider.calls()) == STREAMS)
        process = suite.stack.processes["proxy"]
        process.send_signal(signal.SIGTERM)
        told_at = time.monotonic()
        await asyncio.to_thread(wait_for, "it is not ready", lambda: suite.stack.status("/readyz") == 503, seconds=1)
        while time.monotonic() - told_at < LAME_DUCK - 0.5:
            async with session.post(url, json=body | {"stream": len(statuses) % 2 == 1}, headers=headers) as response:
                statuses.append(response.status)
                closing.append(response.headers.get("Connection"))
                await response.read()
            await asyncio.sleep(0.05)
        await asyncio.to_thread(
            wait_for, "the listener is closed", lambda: not suite.stack.listens(suite.stack.http_port), seconds=3
        )
        assert process.poll() is None
        told = await asyncio.gather(*streams)
        ended = time.monotonic()
    assert [one.whole for one in told] == [True] * STREAMS
    assert set(statuses) == {200}
    assert set(closing) == {"close"}
    assert await asyncio.to_thread(process.wait, 10) == 0
    assert time.monotonic() - ended < 3, "it exits as soon as it is idle"
    assert open_holds(suite.stack.database) == 0, "all that was used is reported before it ends"
    assert audit(suite.stack.database, suite.provider.ledger, RATES, answered={one.nonce for one in told}).problems == []
    assert not list((suite.stack.data / "outbox").glob("*.log"))


async def test_a_second_signal_cuts_what_runs_and_charges_it(fresh):
    suite = fresh("auth", "proxy")
    token = suite.token(max_amount=100)
    async with aiohttp.ClientSession(trust_env=False) as session:
        prompt = "unique:1 tokens:300 chunks:300 seconds:30"
        stream = asyncio.create_task(call(session, suite.stack.base_url, token, model="gpt-test", stream=True, prompt=prompt))
        await asyncio.to_thread(wait_for, "it is upstream", lambda: len(suite.provider.calls()) == 1)
        await asyncio.sleep(0.5)
        process = suite.stack.processes["proxy"]
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_for, "it is closed", lambda: not suite.stack.listens(suite.stack.http_port), seconds=3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0
        assert not (await stream).whole
    assert open_holds(suite.stack.database) == 0
    [row] = suite.calls(token)
    assert (row["state"], row["usage_source"]) == ("settled", "estimated")
    assert row["cost_nanos"] > 0
