"""What the proxy counts of itself, for Prometheus. No label holds anything that a caller chose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services.proxy import routes
from services.proxy.exchange import Exchange
from services.proxy.protocol import ENDS

_SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64)
_BATCH_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.8)


class EdgeMetrics:
    """Requests, refusals and attempts.

    registry: where the metrics go. providers: the names of those that are configured.
    """

    def __init__(self, registry: CollectorRegistry, providers: Iterable[str] = ()) -> None:
        self._requests = Counter(
            "gateway_proxy_requests",
            "Requests by endpoint and HTTP status; 499: the caller left before the answer.",
            ["endpoint", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "gateway_proxy_request_duration_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "gateway_proxy_time_to_first_byte_seconds",
            "Seconds from a call's arrival to the first byte of the provider's answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._refusals = Counter(
            "gateway_proxy_refusals", "Requests that were refused or failed, by reason.", ["reason"], registry=registry
        )
        self._attempts = Counter(
            "gateway_proxy_upstream_attempts",
            "Attempts at providers: answered with a status of a class, or failed without one.",
            ["provider", "outcome"],
            registry=registry,
        )
        self._known: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._registry = registry
        for endpoint in routes.ENDPOINTS:
            self._series(endpoint, 200)
        for provider in providers:
            for outcome in ("2xx", "4xx", "5xx", "not_sent", "no_answer"):
                self._attempts.labels(provider, outcome)

    def watch(
        self,
        *,
        in_flight: Callable[[], float],
        waiting: Callable[[], float],
        auth_up: Callable[[], float],
        bodies: Callable[[], float],
        bodies_most: float,
    ) -> None:
        """Adds what is asked for when the metrics are read.

        in_flight: open requests. waiting: calls that wait for auth's decision. auth_up: 1 while auth answers.
        bodies: bytes that large bodies take in memory; bodies_most: bytes that they may.
        """
        for name, text, value in (
            ("gateway_proxy_requests_in_flight", "Requests that are open now.", in_flight),
            ("gateway_proxy_calls_waiting", "Calls that wait for auth's decision now.", waiting),
            ("gateway_proxy_auth_up", "1 while auth answers.", auth_up),
            ("gateway_proxy_body_pool_used_bytes", "Memory that bodies above 64 KiB take now.", bodies),
            ("gateway_proxy_body_pool_size_bytes", "Memory that bodies above 64 KiB may take.", lambda: bodies_most),
        ):
            Gauge(name, text, registry=self._registry).set_function(value)

    def watch_connections(
        self, *, taken: Callable[[], float], unread: Callable[[], float], ended: Callable[[], Mapping[str, int]]
    ) -> None:
        """Adds what is asked of the connections of applications when the metrics are read.

        taken: open connections. unread: bytes of unfinished heads and of requests behind an open one. ended: how many
        connections were ended before their time, by reason.
        """
        for name, text, value in (
            ("gateway_proxy_connections", "Connections of applications that are open now.", taken),
            ("gateway_proxy_unread_bytes", "Bytes of unfinished heads, and of requests that wait behind another.", unread),
        ):
            Gauge(name, text, registry=self._registry).set_function(value)
        self._registry.register(_Ends(ended))

    def request(self, exchange: Exchange, path: str, status: int, reason: str, seconds: float) -> None:
        """Counts a request that has ended. path: as it came. reason: of a refusal; empty: there was none."""
        endpoint = routes.endpoint(path)
        counter, histogram = self._known.get((endpoint, status)) or self._series(endpoint, status)
        counter.inc()
        histogram.observe(seconds)
        if reason:
            self._refusals.labels(f"PROVIDER_{reason[9]}XX" if reason.startswith("PROVIDER_") else reason.upper()).inc()
        ticket = exchange.ticket
        if ticket is not None:
            if ticket.ttft_ms:
                self._first.observe(ticket.ttft_ms / 1000)
            for attempt in ticket.attempts:
                self._attempts.labels(attempt["provider"], _outcome(attempt)).inc()

    def _series(self, endpoint: str, status: int) -> tuple[Counter, Histogram]:
        series = self._known[endpoint, status] = (
            self._requests.labels(endpoint, str(status)),
            self._seconds.labels(endpoint),
        )
        return series


class _Ends(Collector):
    """Connections that were ended before their time."""

    def __init__(self, ended: Callable[[], Mapping[str, int]]) -> None:
        self._ended = ended

    def collect(self) -> Iterable[Metric]:
        """The numbers of this moment."""
        text = "Connections of applications that were ended before their time, by reason."
        family = CounterMetricFamily("gateway_proxy_connections_ended", text, labels=["reason"])
        ended = self._ended()
        for reason in ENDS:
            family.add_metric([reason], ended.get(reason, 0))
        yield family


class BatchMetrics:
    """The batches in which calls are brought before auth."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Histogram(
            "gateway_proxy_auth_batch_calls", "Calls of one batch that auth decided.", buckets=_BATCH, registry=registry
        )
        self._seconds = Histogram(
            "gateway_proxy_auth_batch_duration_seconds",
            "Seconds that auth took for a batch.",
            buckets=_BATCH_SECONDS,
            registry=registry,
        )
        self._failed = Counter(
            "gateway_proxy_auth_batch_failures", "Batches that auth did not answer, or refused whole.", registry=registry
        )

    def decided(self, calls: int, seconds: float) -> None:
        """Counts a batch that was answered."""
        self._calls.observe(calls)
        self._seconds.observe(seconds)

    def failed(self) -> None:
        """Counts a batch that was not."""
        self._failed.inc()


def _outcome(attempt: dict[str, Any]) -> str:
    """`2xx` and the like, `not_sent`, or `no_answer`."""
    status = attempt.get("status", attempt.get("error"))
    if isinstance(status, int):
        return f"{status // 100}xx"
    return "not_sent" if status == "not_sent" else "no_answer"
