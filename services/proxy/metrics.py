"""What the edge counts of itself, for Prometheus. No label holds anything that a caller chose."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class EdgeMetrics:
    """Requests by status, and how long they took.

    registry: where the metrics go.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter("gateway_proxy_requests", "Requests by HTTP status.", ["status"], registry=registry)
        self._seconds = Histogram(
            "gateway_proxy_request_seconds",
            "Seconds from arrival to the end of the answer.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._known: dict[int, Counter] = {}

    def request(self, status: int, seconds: float) -> None:
        """Counts a request."""
        counter = self._known.get(status)
        if counter is None:
            counter = self._known[status] = self._requests.labels(str(status))
        counter.inc()
        self._seconds.observe(seconds)
