"""Reports that the ledger does not have yet, and leases to be kept. Data only: whoever uses it locks, waits and sends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.client.results import Grant, Undelivered
from gateway.errors import AlreadyExists, AuthUnavailable, GatewayError
from gateway.stubs.auth.v1 import auth_pb2 as pb

MOST_PENDING: Final = 10_000
"""Reports that are kept while auth is away."""
RENEWALS_AT_A_LEASE: Final = 3
"""How often a lease is renewed before it would end: two lost renewals are survived."""
MOST_RENEWED: Final = 256


class Pending:
    """Reports in the order in which they came, by request id. most: how many are kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._reports: dict[str, pb.RecordUsageRequest] = {}
        self._busy: set[str] = set()
        self._refused: list[Undelivered] = []

    def __len__(self) -> int:
        return len(self._reports)

    def add(self, report: pb.RecordUsageRequest, *, busy: bool = False) -> bool:
        """Keeps a report; False: there is no room. busy: whoever adds it tries it first.

        Raises AlreadyExists for another report of a call whose first one is still kept: the first counts, as in the ledger.
        """
        kept = self._reports.get(report.request_id)
        if kept is None and len(self._reports) >= self._most:
            return False
        if kept is not None and kept != report:
            raise AlreadyExists("this call was already reported, with other figures; nothing was changed")
        self._reports[report.request_id] = report
        if busy:
            self._busy.add(report.request_id)
        return True

    def idle(self, report: pb.RecordUsageRequest) -> None:
        """Whoever added it gave up; it is to be sent in the background."""
        self._busy.discard(report.request_id)

    def done(self, report: pb.RecordUsageRequest) -> None:
        """The ledger has it, or nobody wants it sent any more."""
        if self._reports.get(report.request_id) is report:
            del self._reports[report.request_id]
        self._busy.discard(report.request_id)

    def refused(self, report: pb.RecordUsageRequest, error: GatewayError) -> None:
        """The ledger does not take it, now or ever."""
        self.done(report)
        self._refused.append(Undelivered(report.request_id, error.reason, error.message))
        del self._refused[: -self._most]

    def next(self) -> pb.RecordUsageRequest | None:
        """The oldest report that nobody is busy with."""
        return next((report for request_id, report in self._reports.items() if request_id not in self._busy), None)

    def undelivered(self) -> list[Undelivered]:
        """What the ledger does not have: refused since the last time this was asked, and still waiting."""
        refused, self._refused = self._refused, []
        text = "auth has not taken the report yet; it is kept in memory"
        return refused + [Undelivered(request_id, AuthUnavailable.reason, text) for request_id in self._reports]


class Leases:
    """Calls whose leases are kept, and when each is to be renewed. Times are those of a monotonic clock."""

    def __init__(self) -> None:
        self._due: dict[str, tuple[float, float]] = {}

    def keep(self, grant: Grant, now: float) -> None:
        """From now on this call's lease is kept."""
        pause = max(grant.lease, 0.1) / RENEWALS_AT_A_LEASE
        self._due[grant.request_id] = (now + pause, pause)

    def drop(self, request_ids: Iterable[str]) -> None:
        """These calls have ended."""
        for request_id in request_ids:
            self._due.pop(request_id, None)

    def next_due(self) -> float | None:
        """When the next lease is to be renewed; None: there is none."""
        return min((due for due, _ in self._due.values()), default=None)

    def due(self, now: float) -> list[str]:
        """The calls whose leases are to be renewed now. Each becomes due again after its own pause, whatever happens."""
        found = [request_id for request_id, (due, _) in self._due.items() if due <= now][:MOST_RENEWED]
        for request_id in found:
            pause = self._due[request_id][1]
            self._due[request_id] = (now + pause, pause)
        return found

    def gone(self, asked: Iterable[str], renewed: Iterable[str]) -> list[str]:
        """Drops the calls that auth no longer knows as open; gives those that were still kept."""
        lost = [request_id for request_id in set(asked) - set(renewed) if request_id in self._due]
        self.drop(lost)
        return lost
