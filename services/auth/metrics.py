"""What auth tells Prometheus: decisions, settlements, the transactions that they wait for, and the books as they stand."""

from __future__ import annotations

from collections import Counter as Counts
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway import errors
from gateway.money import NANOS
from gateway.storage.database import Database
from gateway.usage import Source, State

EVENTS: Final = ("adopted", "implausible_usage", "overrun", "conflicting_report")
"""What the ledger tells of itself beside its answers."""
REASONS: Final = tuple(
    kind.reason
    for kind in (
        errors.TokenUnknown,
        errors.TokenDisabled,
        errors.TokenExpired,
        errors.ModelNotAllowed,
        errors.IpNotAllowed,
        errors.BudgetExhausted,
        errors.RequestExceedsBudget,
        errors.BudgetReserved,
        errors.ModelNotPriced,
        errors.UnboundedRequest,
        errors.RateLimited,
        errors.RequestWithdrawn,
    )
)

_ITEMS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 320)
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


class AuthMetrics:
    """Counts in one registry; safe to call from many threads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._admissions = Counter(
            "gateway_auth_admissions",
            "Decisions on calls: granted, or denied with a reason. `looked`: judged, and nothing held.",
            ["outcome", "reason"],
            registry=registry,
        )
        self._settlements = Counter(
            "gateway_auth_settlements",
            "Reports on calls that were booked, by what became of the call and where its figures come from.",
            ["state", "source"],
            registry=registry,
        )
        self._refused = Counter(
            "gateway_auth_settlements_refused", "Reports that were not booked, by reason.", ["reason"], registry=registry
        )
        self._items = Histogram(
            "gateway_auth_commit_items", "Settlements and admissions of one RPC.", buckets=_ITEMS, registry=registry
        )
        self._seconds = Histogram(
            "gateway_auth_commit_seconds",
            "Seconds that an RPC waited for the ledger: for its turn, and for the disk.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._failed = Counter(
            "gateway_auth_commit_failures", "RPCs whose commit failed: nothing of them was booked.", registry=registry
        )
        self._waiting = Gauge("gateway_auth_commits_waiting", "RPCs that wait for the ledger now.", registry=registry)
        self._expired = Counter(
            "gateway_calls_expired", "Open calls that nobody reported, charged at their hold for now.", registry=registry
        )
        self._events = Counter(
            "gateway_ledger_events", "What an operator should look at, by kind.", ["event"], registry=registry
        )
        self._pruned = Counter(
            "gateway_rows_pruned",
            "Rows that were deleted because they are older than they are kept.",
            ["table"],
            registry=registry,
        )
        self._open = Gauge("gateway_ledger_open_calls", "Calls that are open, over all replicas.", registry=registry)
        self._held = Gauge(
            "gateway_ledger_held_amount",
            "Money set aside for open calls, over all replicas, in currency units.",
            registry=registry,
        )
        self._proxies = Gauge("gateway_ledger_proxies", "Proxies with open calls, over all replicas.", registry=registry)
        self._swept = Gauge(
            "gateway_auth_sweep_timestamp_seconds", "When the sweeper last did all its work, in Unix time.", registry=registry
        )
        for outcome, reason in (("granted", ""), ("looked", ""), *(("denied", reason) for reason in REASONS)):
            self._admissions.labels(outcome, reason)
        for state, source in (
            (State.SETTLED, Source.PROVIDER),
            (State.SETTLED, Source.ESTIMATED),
            (State.RELEASED, Source.NONE),
        ):
            self._settlements.labels(state, source)
        for event in EVENTS:
            self._events.labels(event)
        for table in ("requests", "denials", "refusals"):
            self._pruned.labels(table)

    def waiting(self, change: int) -> None:
        """Notes that an RPC begins (1) or ceases (-1) to wait for the ledger."""
        self._waiting.inc(change)

    def committed(self, items: int, seconds: float) -> None:
        """Notes a commit of so many settlements and admissions."""
        self._items.observe(items)
        self._seconds.observe(seconds)

    def failed(self) -> None:
        """Notes a commit that failed."""
        self._failed.inc()

    def decided(self, counts: Counts[tuple[str, str]]) -> None:
        """Counts decisions: (outcome, reason) to how many."""
        for labels, count in counts.items():
            self._admissions.labels(*labels).inc(count)

    def settled(self, counts: Counts[tuple[str, str]]) -> None:
        """Counts settlements: (state, source) to how many."""
        for labels, count in counts.items():
            self._settlements.labels(*labels).inc(count)

    def refused(self, reason: str) -> None:
        """Counts a report that was not booked."""
        self._refused.labels(reason).inc()

    def expired(self, calls: int) -> None:
        """Counts calls that nobody reported."""
        self._expired.inc(calls)

    def pruned(self, table: str, rows: int) -> None:
        """Counts rows of a table that were deleted because they are old."""
        self._pruned.labels(table).inc(rows)

    def event(self, event: str, count: int) -> None:
        """Counts what the ledger tells of itself."""
        self._events.labels(event).inc(count)

    def look(self, db: Database) -> None:
        """Reads how the books stand. Raises DatabaseUnavailable."""
        ((calls, held, proxies),) = db.query(
            "SELECT COUNT(*), COALESCE(SUM(held_nanos), 0), COUNT(DISTINCT proxy_id) FROM requests WHERE state = 'admitted'"
        )
        self._open.set(calls)
        self._held.set(int(held) / NANOS)
        self._proxies.set(proxies)

    def swept(self, at: float) -> None:
        """Notes that the sweeper did all its work. at: Unix time."""
        self._swept.set(at)
