"""Steady traffic: so many calls at a time, every other one streamed, and how many are in flight at any moment."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import aiohttp

from tests.suite.load import Told, call

PLAIN = "unique:1 tokens:8 seconds:0.15"
STREAMS = "unique:1 tokens:20 chunks:10 seconds:0.5"
PAUSE = 0.05  # seconds that a caller waits after a call that failed
REFUSED = {"402 insufficient_quota", "402 request_exceeds_budget", "429 budget_reserved"}
EDGE = "prompt:10 tokens:1000 chunks:10 seconds:0.1"  # two tenths of a cent, and a hold that is hardly more


class Traffic:
    """Callers who make one call after another, each call once.

    told: what became of each call, in the order in which they ended. in_flight: calls that have begun and not ended.
    """

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        at_once: int = 20,
        plain: str = PLAIN,
        streams: str = STREAMS,
        pause: float = PAUSE,
        **fields: object,
    ) -> None:
        self._base_url, self._token, self._at_once = base_url, token, at_once
        self._plain, self._streams, self._pause, self._fields = plain, streams, pause, fields
        self._turns = itertools.count()
        self.told: list[Told] = []
        self.in_flight = 0
        self.whole = 0

    @classmethod
    def at_the_budget(cls, base_url: str, token: str) -> Traffic:
        """A few callers whose budget is soon spent: from then on each call that is charged too little shows."""
        return cls(base_url, token, at_once=3, plain=EDGE, streams=EDGE, pause=0.2, max_tokens=1000)

    async def run(self, until: Callable[[], bool]) -> None:
        """Goes on until told to stop; the calls that run then are waited for."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as session:
            await asyncio.gather(*(self._caller(session, until) for _ in range(self._at_once)))

    async def _caller(self, session: aiohttp.ClientSession, until: Callable[[], bool]) -> None:
        while not until():
            stream = next(self._turns) % 2 == 0
            prompt = self._streams if stream else self._plain
            self.in_flight += 1
            told = await call(
                session, self._base_url, self._token, model="gpt-test", stream=stream, prompt=prompt, **self._fields
            )
            self.in_flight -= 1
            self.told.append(told)
            self.whole += told.whole
            if told.status != 200:
                await asyncio.sleep(self._pause)
