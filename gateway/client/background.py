"""The thread behind a `Gateway`: delivers reports that auth could not take at once, and keeps leases."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from gateway.client.faults import MOST_PAUSE_BEHIND, PAUSE, Fault
from gateway.client.pending import Leases, Pending
from gateway.client.results import Grant, Undelivered
from gateway.errors import Overloaded
from gateway.stubs.auth.v1 import auth_pb2 as pb

_log: Final = logging.getLogger("gateway.client")

Send = Callable[[pb.RecordUsageRequest], pb.RecordUsageResponse]
Renew = Callable[[list[str]], list[str]]


class Background:
    """Safe to use from many threads.

    send: one try to report; raises Fault. renew: one try to prolong leases; gives those that still are open; raises Fault.
    most: how many reports are kept while auth is away.
    """

    def __init__(self, *, send: Send, renew: Renew, most: int) -> None:
        self._send = send
        self._renew = renew
        self._pending = Pending(most)
        self._leases = Leases()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._pause = PAUSE
        self._retry_at = 0.0

    def record(self, report: pb.RecordUsageRequest, attempt: Send) -> pb.RecordUsageResponse | None:
        """Reports now; None: auth is away, and the report is kept. Whatever interrupts this, the report is not lost.

        attempt: tries for as long as the caller waits; raises Fault.
        Raises the GatewayError of a refusal, and Overloaded when auth is away and there is no room.
        """
        with self._changed:
            kept = self._pending.add(report, busy=True)
        try:
            answer = attempt(report)
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
        with self._changed:
            if self._pending.add(report):
                self._wake()
            else:
                _log.error("withdrawal_dropped: too many reports wait for auth (request_id=%s)", report.request_id)

    def keep(self, grant: Grant) -> None:
        """Renews this call's lease from now on."""
        with self._changed:
            self._leases.keep(grant, time.monotonic())
            self._wake()

    def drop(self, request_id: str) -> None:
        """Renews it no more."""
        with self._changed:
            self._leases.drop([request_id])

    def flush(self, timeout: float) -> list[Undelivered]:
        """Waits until nothing is pending, at most this many seconds; gives what the ledger does not have."""
        with self._changed:
            self._retry_at, self._pause = 0.0, PAUSE
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._pending) == 0, timeout)
            return self._pending.undelivered()

    def stop(self) -> None:
        """Sends nothing any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        """Waits for the thread's end."""
        if self._thread is not None:
            self._thread.join()

    def _leave(self, report: pb.RecordUsageRequest) -> None:
        with self._changed:
            self._pending.idle(report)
            self._wake()

    def _done(self, report: pb.RecordUsageRequest) -> None:
        with self._changed:
            self._pending.done(report)
            self._changed.notify_all()

    def _wake(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="gateway-client", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                report, due = self._next()
                while report is None and not due and not self._closed:
                    self._changed.wait(self._idle_for())
                    report, due = self._next()
                if self._closed:
                    return
            if due:
                self._prolong(due)
            if report is not None:
                self._deliver(report)

    def _next(self) -> tuple[pb.RecordUsageRequest | None, list[str]]:
        now = time.monotonic()
        return (self._pending.next() if now >= self._retry_at else None), self._leases.due(now)

    def _idle_for(self) -> float | None:
        moments = [moment for moment in (self._leases.next_due(),) if moment is not None]
        if self._pending.next() is not None:
            moments.append(self._retry_at)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _deliver(self, report: pb.RecordUsageRequest) -> None:
        try:
            self._send(report)
        except Fault as fault:
            with self._changed:
                if fault.may_pass:
                    self._retry_at = time.monotonic() + self._pause
                    self._pause = min(2 * self._pause, MOST_PAUSE_BEHIND)
                    return
                self._pending.refused(report, fault.error)
                self._changed.notify_all()
            _log.error("report_refused: %s (request_id=%s)", fault.error.message, report.request_id)
            return
        except Exception:
            _log.exception("report_not_sent (request_id=%s)", report.request_id)
            with self._changed:
                self._retry_at = time.monotonic() + MOST_PAUSE_BEHIND
            return
        with self._changed:
            self._retry_at, self._pause = 0.0, PAUSE
            self._pending.done(report)
            self._changed.notify_all()

    def _prolong(self, due: list[str]) -> None:
        try:
            renewed = self._renew(due)
        except Fault as fault:
            _log.warning("leases_not_renewed: %s (calls=%d)", fault.error.message, len(due))
            return
        except Exception:
            _log.exception("leases_not_renewed (calls=%d)", len(due))
            return
        with self._changed:
            gone = self._leases.gone(due, renewed)
        for request_id in gone:
            _log.warning("lease_lost: auth no longer has the call open (request_id=%s)", request_id)
