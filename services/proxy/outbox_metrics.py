"""What an operator sees of the outbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge


class OutboxMetrics:
    """The outbox's metrics in one registry; the gauges ask when they are read, and may be read in any thread.

    pending: settlements that nobody has acknowledged yet.
    oldest: seconds for which the oldest of them has been waiting; 0: there is none.
    files: how many files this process has locked. size: their length in bytes.
    unwritable: whether the disk refuses.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        pending: Callable[[], float],
        oldest: Callable[[], float],
        files: Callable[[], float],
        size: Callable[[], float],
        unwritable: Callable[[], float],
    ) -> None:
        self.corrupt: Final = Counter(
            "gateway_proxy_outbox_corrupt", "Damaged outbox files that were set aside.", registry=registry
        )
        self.refused: Final = Counter(
            "gateway_proxy_outbox_refused",
            "Settlements that the ledger refused for good; they are set aside.",
            registry=registry,
        )
        for name, text, value in (
            ("pending", "Settlements not yet acknowledged.", pending),
            ("oldest_seconds", "How long the oldest of them has been waiting.", oldest),
            ("files", "Files that this proxy keeps, those of dead ones that it adopted included.", files),
            ("bytes", "Length of these files.", size),
            ("unwritable", "1 while the disk refuses writes.", unwritable),
        ):
            Gauge(f"gateway_proxy_outbox_{name}", text, registry=registry).set_function(value)
