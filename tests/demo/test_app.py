"""The demo provider over HTTP, with the stock SDK and with bare requests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import aiohttp
import openai
import pytest
from aiohttp import web

from services.demo.app import Demo
from services.demo.completion import tokens_of

QUESTION = [{"role": "user", "content": "Hello, old friend"}]


class Running:
    """A demo provider on a free port."""

    def __init__(self, demo: Demo, url: str) -> None:
        self.demo = demo
        self.url = url

    @property
    def sdk(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)


@pytest.fixture
async def started() -> AsyncIterator[object]:
    runners = []

    async def start(pace: float = 0) -> Running:
        demo = Demo(pace=pace)
        runner = web.AppRunner(demo.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return Running(demo, f"http://127.0.0.1:{runner.addresses[0][1]}")

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_the_stock_sdk_gets_a_plain_answer_with_exact_usage(started) -> None:
    async with (await started()).sdk as sdk:
        answer = await sdk.chat.completions.create(model="gpt-4o", messages=QUESTION, n=2)
    assert answer.model == "gpt-4o"
    assert len(answer.choices) == 2
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == sum(len(tokens_of(c.message.content or "")) for c in answer.choices)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_stream_has_one_delta_a_token_and_the_usage_at_its_end(started) -> None:
    async with (await started()).sdk as sdk:
        plain = await sdk.chat.completions.create(model="demo", messages=QUESTION, max_completion_tokens=9)
        stream = await sdk.chat.completions.create(
            model="demo", messages=QUESTION, max_completion_tokens=9, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(deltas) == 9
    assert "".join(deltas) == plain.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_without_being_asked_a_stream_tells_no_usage(started) -> None:
    running = await started()
    body = {"model": "demo", "messages": QUESTION, "stream": True}
    async with aiohttp.ClientSession() as http, http.post(f"{running.url}/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = await answer.text()
    events = text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events[:-1])


async def test_the_pace_holds_for_streams_and_plain_answers(started) -> None:
    loop = asyncio.get_running_loop()
    async with (await started(pace=100)).sdk as sdk:
        for stream in (True, False):
            before = loop.time()
            answer = await sdk.chat.completions.create(model="demo", messages=QUESTION, max_tokens=20, stream=stream)
            if stream:
                async for _ in answer:
                    pass
            assert 0.2 <= loop.time() - before < 2.0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_who_hangs_up_stops_the_generation(started, log_lines, stream: bool) -> None:
    running = await started(pace=50)
    body = {"model": "demo", "messages": QUESTION, "stream": stream, "min_tokens": 5000}
    async with aiohttp.ClientSession() as http:
        post = asyncio.ensure_future(http.post(f"{running.url}/v1/chat/completions", json=body))
        if stream:
            answer = await post
            await answer.content.readline()
            answer.close()
        else:
            await asyncio.sleep(0.3)
            post.cancel()
            await asyncio.gather(post, return_exceptions=True)
    await asyncio.wait_for(running.demo.idle(), 5)
    (line,) = [line for line in log_lines() if line["event"] == "completion"]
    assert line["whole"] is False
    assert 0 <= line["output_tokens"] < 500


async def test_faults_have_the_shape_of_openai(started) -> None:
    running = await started()
    async with aiohttp.ClientSession() as http:
        for method, path, data, status, code in (
            ("POST", "/v1/chat/completions", b"{", 400, None),
            ("POST", "/v1/chat/completions", b"[]", 400, None),
            ("POST", "/v1/chat/completions", b"[" * 100_000, 400, None),
            ("POST", "/v1/chat/completions", b"\xff", 400, None),
            ("GET", "/v1/chat/completions", None, 405, "method_not_allowed"),
            ("GET", "/v1/nothing", None, 404, "unknown_url"),
            ("GET", "/v1/models/gpt-4", None, 404, "model_not_found"),
        ):
            async with http.request(method, running.url + path, data=data) as answer:
                assert answer.status == status, path
                error = (await answer.json())["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert error["code"] == code
    async with running.sdk as sdk:
        with pytest.raises(openai.BadRequestError) as fault:
            await sdk.chat.completions.create(model="demo", messages=[])
    assert fault.value.param == "messages"


async def test_it_lists_its_one_model(started) -> None:
    async with (await started()).sdk as sdk:
        assert [model.id async for model in sdk.models.list()] == ["demo"]
        assert (await sdk.models.retrieve("demo")).id == "demo"


async def test_it_is_not_ready_once_it_is_told_to_stop_but_still_takes_calls(started) -> None:
    running = await started()
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{running.url}/readyz") as answer:
            assert answer.status == 200
        running.demo.stop_taking()
        async with http.get(f"{running.url}/readyz") as answer:
            assert answer.status == 503
        async with http.get(f"{running.url}/healthz") as answer:
            assert answer.status == 200
            assert answer.headers["connection"] == "close"
        body = {"model": "demo", "messages": QUESTION}
        async with http.post(f"{running.url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200


def spawn(settings: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "services.demo"]
    return subprocess.Popen(command, env=os.environ | settings, stderr=subprocess.PIPE, text=True)


@pytest.fixture
async def process() -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """The demo provider as a process at 20 tokens a second, and its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    demo = spawn({"GATEWAY_DEMO_ADDRESS": f"127.0.0.1:{port}", "GATEWAY_DEMO_PACE": "20"})
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as http:
        for _ in range(200):
            try:
                async with http.get(f"{url}/readyz"):
                    break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
    yield demo, url
    demo.kill()
    demo.communicate()


async def test_sigterm_lets_open_streams_finish_and_exits_with_0(process) -> None:
    demo, url = process
    body = {"model": "demo", "messages": QUESTION, "stream": True, "max_tokens": 20}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", json=body) as answer:
        await answer.content.readline()
        demo.send_signal(signal.SIGTERM)
        assert (await answer.text()).endswith("data: [DONE]\n\n")
    assert await asyncio.to_thread(demo.wait, 5) == 0


async def test_a_second_signal_cuts(process) -> None:
    demo, url = process
    body = {"model": "demo", "messages": QUESTION, "stream": True, "min_tokens": 10_000}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", json=body) as answer:
        await answer.content.readline()
        demo.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        demo.send_signal(signal.SIGTERM)
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    assert await asyncio.to_thread(demo.wait, 5) == 1
