"""What an operator sees of the outbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge


class OutboxMetrics:
    """The outbox's metrics in one registry; the gauges ask when they are read.

    pending: settlements that nobody has acknowledged yet.
    size: the length of all files that this process has locked, in bytes.
    unwritable: whether the disk refuses.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        pending: Callable[[], float],
        size: Callable[[], float],
        unwritable: Callable[[], float],
    ) -> None:
        self.corrupt: Final = Counter("outbox_corrupt", "Damaged outbox files that were set aside.", registry=registry)
        self.refused: Final = Counter("outbox_refused", "Settlements that the ledger refused for good.", registry=registry)
        Gauge("outbox_pending", "Settlements not yet acknowledged.", registry=registry).set_function(pending)
        Gauge("outbox_bytes", "Length of the outbox's files in bytes.", registry=registry).set_function(size)
        Gauge("outbox_unwritable", "1 while the disk refuses writes.", registry=registry).set_function(unwritable)
