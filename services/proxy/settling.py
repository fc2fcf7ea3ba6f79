"""When settlements are sent on their own: soon after they came, in growing batches, and gently when the ledger was away."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from gateway.errors import GatewayError
from gateway.process.logs import get_logger
from gateway.process.tasks import survives

TRAVEL_TIME: Final = 0.05  # seconds from one batch to the next, in which settlements gather or travel with a validation
_AGAIN: Final = 0.25
_SMALLEST, _LARGEST = 16, 256
_QUICK, _SLOW = 0.25, 0.5  # seconds a batch may take before batches stop growing, or shrink
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5

_log = get_logger(__name__)


class Settler:
    """One loop with one request in flight.

    deliver: takes from an iterator the calls whose turn it is, as many as it likes, and returns how many it sent; raises
    GatewayError when the ledger did not answer, and sees to it that they are pushed again.
    """

    def __init__(self, deliver: Callable[[Iterator[str]], Awaitable[int]]) -> None:
        self._deliver = deliver
        self._due: list[tuple[float, str]] = []
        self._queued: set[str] = set()
        self._wake = asyncio.Event()
        self._batch = _SMALLEST
        self._failures = 0
        self._hurry = False
        self._last_turn = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []

    def push(self, request_id: str, *, again: bool = False) -> None:
        """Puts a call on the list, once. On an idle proxy its turn is at once, so that the books show it when it is looked for.

        again: it was tried before; its turn comes a little later.
        """
        if request_id in self._queued:
            return
        self._queued.add(request_id)
        now = time.monotonic()
        heapq.heappush(self._due, (now + _AGAIN if again else max(now, self._last_turn + TRAVEL_TIME), request_id))
        self._wake.set()

    def start(self) -> None:
        """Starts sending; needs the running loop."""
        self._tasks = [asyncio.create_task(self._run())]

    async def drain(self, empty: asyncio.Event, seconds: float) -> None:
        """Sends without waiting for company until nothing is left or the time is over."""
        self._hurry = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await empty.wait()

    async def close(self) -> None:
        """Stops."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @survives
    async def _run(self) -> None:
        while True:
            await self._until_due()
            self._last_turn = started = time.monotonic()
            try:
                sent = await self._deliver(self._turn())
            except GatewayError as error:
                await self._pause(error)
            except Exception:
                # A fault of our own must not end the loop: what is pending stays pending.
                _log.exception("settling_failed")
                await self._pause(None)
            else:
                self._adapt(sent, time.monotonic() - started)

    async def _until_due(self) -> None:
        while True:
            self._wake.clear()
            left = self._due[0][0] - time.monotonic() if self._due else None
            if left is not None and (left <= 0 or self._hurry):
                return
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _turn(self) -> Iterator[str]:
        """The calls whose turn it is, at most a batch of them, each taken off the list."""
        now = time.monotonic()
        for _ in range(self._batch):
            if not self._due or (self._due[0][0] > now and not self._hurry):
                return
            _, request_id = heapq.heappop(self._due)
            self._queued.discard(request_id)
            yield request_id

    def _adapt(self, sent: int, seconds: float) -> None:
        if sent and self._failures:
            self._failures = 0
        if seconds > _SLOW:
            self._batch = max(_SMALLEST, self._batch // 2)
        elif sent and seconds < _QUICK:
            self._batch = min(_LARGEST, self._batch * 2)

    async def _pause(self, error: GatewayError | None) -> None:
        """Waits a little longer each time; every proxy by another amount, so that they do not come back all at once."""
        if self._failures == 0:
            _log.warning("settlements_wait", reason=error.reason if error else "INTERNAL")
        self._batch = _SMALLEST
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        await asyncio.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - spreads load, guards nothing
