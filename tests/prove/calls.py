"""Calls for rows that are not about speed: in `make test`, whose machine may be busy, who gets 503 comes again."""

from __future__ import annotations

import asyncio
import time

import aiohttp

from tests.prove.proof import FULL
from tests.suite.load import Told, call

SECONDS = 0.0 if FULL else 60.0  # for which one call is tried: in full, no call may get 503 where none is expected


async def insist(doors: list[str], token: str, count: int, **fields: object) -> list[Told]:
    """So many calls at once, over all doors in turns, each again while it may and gets 503; the last answer of each."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
        return await asyncio.gather(*(one_call(session, doors[turn % len(doors)], token, **fields) for turn in range(count)))


async def one_call(session: aiohttp.ClientSession, door: str, token: str, **fields: object) -> Told:
    """One of them."""
    deadline = time.monotonic() + SECONDS
    while True:
        told = await call(session, door, token, **fields)  # type: ignore[arg-type] # the test's own fields
        if told.status != 503 or time.monotonic() > deadline:
            return told
        await asyncio.sleep(float(told.retry_after or 1))
