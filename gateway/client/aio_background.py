"""The task behind an `AsyncGateway`: what `gateway.client.background` does, on the running loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.client.faults import MOST_PAUSE_BEHIND, PAUSE, Fault
from gateway.client.pending import Leases, Pending
from gateway.client.results import Grant, Undelivered
from gateway.errors import Overloaded
from gateway.stubs.auth.v1 import auth_pb2 as pb

_log: Final = logging.getLogger("gateway.client")

AsyncSend = Callable[[pb.RecordUsageRequest], Awaitable[pb.RecordUsageResponse]]
AsyncRenew = Callable[[list[str]], Awaitable[list[str]]]


class AsyncBackground:
    """For one loop.

    send: one try to report; raises Fault. renew: one try to prolong leases; gives those that still are open; raises Fault.
    most: how many reports are kept while auth is away.
    """

    def __init__(self, *, send: AsyncSend, renew: AsyncRenew, most: int) -> None:
        self._send = send
        self._renew = renew
        self._pending = Pending(most)
        self._leases = Leases()
        self._work = asyncio.Event()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pause = PAUSE
        self._retry_at = 0.0

    async def record(self, report: pb.RecordUsageRequest, attempt: AsyncSend) -> pb.RecordUsageResponse | None:
        """Reports now; None: auth is away, and the report is kept. Whatever interrupts this, the report is not lost.

        attempt: tries for as long as the caller waits; raises Fault.
        Raises the GatewayError of a refusal, and Overloaded when auth is away and there is no room.
        """
        kept = self._pending.add(report, busy=True)
        try:
            answer = await attempt(report)
        except Fault as fault:
            if not fault.may_pass:
                self._done(report)
                raise fault.error from fault
            if not kept:
                raise Overloaded("auth is away, and too many reports wait for it already") from fault
            self._leave(report)
            return None
        except BaseException:
            self._leave(report)
            raise
        self._done(report)
        return answer

    def post(self, report: pb.RecordUsageRequest) -> None:
        """Has a report sent; without room it is left out, and the call is charged when its lease ends."""
        if self._pending.add(report):
            self._wake()
        else:
            _log.error("withdrawal_dropped: too many reports wait for auth (request_id=%s)", report.request_id)

    def keep(self, grant: Grant) -> None:
        """Renews this call's lease from now on."""
        self._leases.keep(grant, time.monotonic())
        self._wake()

    def drop(self, request_id: str) -> None:
        """Renews it no more."""
        self._leases.drop([request_id])

    async def flush(self, timeout: float) -> list[Undelivered]:
        """Waits until nothing is pending, at most this many seconds; gives what the ledger does not have."""
        self._retry_at, self._pause = 0.0, PAUSE
        self._work.set()
        until = time.monotonic() + timeout
        while len(self._pending) and (left := until - time.monotonic()) > 0:
            self._settled.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._settled.wait()
        return self._pending.undelivered()

    async def stop(self) -> None:
        """Sends nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _leave(self, report: pb.RecordUsageRequest) -> None:
        self._pending.idle(report)
        self._wake()

    def _done(self, report: pb.RecordUsageRequest) -> None:
        self._pending.done(report)
        self._settled.set()

    def _wake(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="gateway-client")
        self._work.set()

    async def _run(self) -> None:
        while True:
            self._work.clear()
            now = time.monotonic()
            report = self._pending.next() if now >= self._retry_at else None
            due = self._leases.due(now)
            if due:
                await self._prolong(due)
            if report is not None:
                await self._deliver(report)
            if not due and report is None:
                # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._idle_for()):
                        await self._work.wait()

    def _idle_for(self) -> float | None:
        moments = [moment for moment in (self._leases.next_due(),) if moment is not None]
        if self._pending.next() is not None:
            moments.append(self._retry_at)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    async def _deliver(self, report: pb.RecordUsageRequest) -> None:
        try:
            await self._send(report)
        except Fault as fault:
            if fault.may_pass:
                self._retry_at = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, MOST_PAUSE_BEHIND)
                return
            self._pending.refused(report, fault.error)
            self._settled.set()
            _log.error("report_refused: %s (request_id=%s)", fault.error.message, report.request_id)
        except Exception:
            _log.exception("report_not_sent (request_id=%s)", report.request_id)
            self._retry_at = time.monotonic() + MOST_PAUSE_BEHIND
        else:
            self._retry_at, self._pause = 0.0, PAUSE
            self._done(report)

    async def _prolong(self, due: list[str]) -> None:
        try:
            renewed = await self._renew(due)
        except Fault as fault:
            _log.warning("leases_not_renewed: %s (calls=%d)", fault.error.message, len(due))
            return
        except Exception:
            _log.exception("leases_not_renewed (calls=%d)", len(due))
            return
        for request_id in self._leases.gone(due, renewed):
            _log.warning("lease_lost: auth no longer has the call open (request_id=%s)", request_id)
