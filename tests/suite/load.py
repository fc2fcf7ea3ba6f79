"""Many calls at once, as an application that honours Retry-After makes them, and what became of each."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from tests.suite.audit import AGENT


@dataclass
class Told:
    """What one caller saw. status 0: the connection failed. whole: the answer came to its end, without an error event.

    began: when it was made, in monotonic seconds. seconds: how long it took.
    """

    nonce: str
    status: int
    code: str = ""
    whole: bool = False
    retry_after: str = ""
    began: float = 0.0
    seconds: float = 0.0
    text: str = ""


async def call(
    session: aiohttp.ClientSession,
    base_url: str,
    token: str,
    *,
    model: str,
    stream: bool = False,
    prompt: str = "",
    **fields: object,
) -> Told:
    """Makes one call with a nonce of its own."""
    nonce = uuid.uuid4().hex
    told = Told(nonce, 0)
    body = {"model": model, "messages": [{"role": "user", "content": f"nonce:{nonce} {prompt}"}], "stream": stream, **fields}
    headers = {"Authorization": f"Bearer {token}", "User-Agent": AGENT + nonce}
    told.began = started = time.monotonic()
    try:
        async with session.post(f"{base_url}/chat/completions", json=body, headers=headers) as response:
            told.status, told.retry_after = response.status, response.headers.get("Retry-After", "")
            told.text = (await response.read()).decode()
            told.whole = response.status == 200 and (not stream or told.text.endswith("data: [DONE]\n\n"))
            if response.status != 200:
                told.code = json.loads(told.text)["error"]["code"]
    except (aiohttp.ClientError, ConnectionError):
        told.whole = False
    told.seconds = time.monotonic() - started
    return told


async def calls(base_url: str, token: str, count: int, *, at_once: int, **fields: object) -> list[Told]:
    """Makes so many calls, at most `at_once` at a time; each is made once."""
    gate = asyncio.Semaphore(at_once)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:

        async def one() -> Told:
            async with gate:
                return await call(session, base_url, token, **fields)  # type: ignore[arg-type] # the test's own fields

        return await asyncio.gather(*(one() for _ in range(count)))


async def patient_calls(base_url: str, token: str, count: int, *, seconds: float, **fields: object) -> list[Told]:
    """Makes so many calls at once; who is told to wait comes back after Retry-After, for so many seconds."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
        end = time.monotonic() + seconds

        async def one() -> Told:
            while True:
                told = await call(session, base_url, token, **fields)  # type: ignore[arg-type] # the test's own fields
                if told.status not in {429, 503} or not told.retry_after or time.monotonic() > end:
                    return told
                await asyncio.sleep(float(told.retry_after))

        return await asyncio.gather(*(one() for _ in range(count)))


async def steady_calls(
    base_url: str, token: str, *, at_once: int, until: Callable[[], bool], streams: str, plain: str, model: str
) -> list[Told]:
    """Keeps so many calls going, every other one streamed, until told to stop. streams, plain: their prompts."""
    told: list[Told] = []
    turns = itertools.count()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:

        async def worker() -> None:
            while not until():
                stream = next(turns) % 2 == 0
                prompt = streams if stream else plain
                one = await call(session, base_url, token, model=model, stream=stream, prompt=prompt)
                told.append(one)
                if one.status != 200:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(worker() for _ in range(at_once)))
    return told


async def paced_calls(
    base_url: str, token: str, *, a_second: float, until: Callable[[], bool], connections: int = 20, **fields: object
) -> list[Told]:
    """Begins so many calls a second, whatever becomes of those before, until told to stop. Every other one is streamed."""
    told: list[asyncio.Task[Told]] = []
    turns = itertools.count()
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=30)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as session, asyncio.TaskGroup() as group:
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while not until():
            stream = next(turns) % 2 == 0
            told.append(group.create_task(call(session, base_url, token, stream=stream, **fields)))  # type: ignore[arg-type] # the test's own fields
            next_at += 1 / a_second
            await asyncio.sleep(max(0.0, next_at - loop.time()))
    return [task.result() for task in told]
