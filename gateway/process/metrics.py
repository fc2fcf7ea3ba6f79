"""What every service tells Prometheus of itself: the process, the release, its certificate, and the RPCs that it answers.

Names follow Prometheus: base units, `_total` for what only grows. No label holds anything that a caller chose, and every series
whose labels are known is there from the start at 0, so that the first event of a kind is seen as an increase.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from datetime import datetime
from importlib.metadata import version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.process.log_sink import lost_lines
from gateway.process.logs import get_logger

_log = get_logger(__name__)

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


def service_registry(service: str, *, certificate_ends: Callable[[], datetime] | None = None) -> CollectorRegistry:
    """A registry with what is the same for every service.

    certificate_ends: the end of the service's certificate; asked when the metrics are read.
    """
    # A series more for each counter, which tells no more than the start of the process does.
    disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no annotation there
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    build = Gauge(
        "gateway_build_info",
        "Always 1; the labels tell the service and its release.",
        ["service", "version", "python"],
        registry=registry,
    )
    build.labels(service, version("gateway-zero"), platform.python_version()).set(1)
    registry.register(_LostLines())
    if certificate_ends is not None:
        ends = certificate_ends
        Gauge(
            "gateway_certificate_expiry_timestamp_seconds",
            "When the service's certificate for gRPC ends, in Unix time.",
            registry=registry,
        ).set_function(lambda: ends().timestamp())
    return registry


class _LostLines(Collector):
    """Lines of the log that could not be written: asked for when the metrics are read, as the log itself cannot tell."""

    def collect(self) -> Iterable[Metric]:
        """The one series."""
        yield CounterMetricFamily("gateway_log_lines_lost", "Lines of the log that could not be written.", value=lost_lines())


class RpcMetrics:
    """The RPCs of a server, by method and code.

    methods: the full names of the server's own. For a unary RPC the time is that of the call; for a stream that of all of it.
    """

    def __init__(self, registry: CollectorRegistry, methods: Iterable[str]) -> None:
        self._handled = Counter(
            "gateway_rpc_server_handled",
            "RPCs that were answered, by method and gRPC code.",
            ["method", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "gateway_rpc_server_duration_seconds",
            "Seconds from an RPC's start on a thread to its end.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._known: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        for method in methods:
            self._series(method, "OK")

    def handled(self, method: str, code: str, seconds: float) -> None:
        """Counts one RPC. method: its full name. code: of gRPC, such as `OK`."""
        counter, histogram = self._known.get((method, code)) or self._series(method, code)
        counter.inc()
        histogram.observe(seconds)

    def _series(self, method: str, code: str) -> tuple[Counter, Histogram]:
        short = method.rpartition("/")[2]
        series = self._known[method, code] = (self._handled.labels(short, code), self._seconds.labels(short))
        return series


class DatabaseMetrics:
    """Whether the database answers, as readiness finds it every second."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._was_up: bool | None = None
        self._up = Gauge("gateway_database_up", "1 while the database answers.", registry=registry)

    def watched(self, is_reachable: Callable[[], bool], trouble: Callable[[], str]) -> bool:
        """Asks whether the database answers, and notes it; a change is one line of the log.

        trouble: says why it does not.
        """
        up = is_reachable()
        self._up.set(up)
        if up is not self._was_up:
            if not up:
                _log.error("database_unusable", fault=trouble() or "it does not take writes")
            elif self._was_up is not None:
                _log.info("database_usable")
            self._was_up = up
        return up
