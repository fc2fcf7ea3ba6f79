"""The internal port, asked as probes ask."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from gateway.process.probes import Probes, start_probes


class Asked:
    """Probes with a readiness that the test sets."""

    def __init__(self) -> None:
        self.ready: Callable[[], bool] = lambda: True
        self.registry = CollectorRegistry()
        self.probes = start_probes("127.0.0.1:0", self._is_ready, registry=self.registry)

    def _is_ready(self) -> bool:
        return self.ready()

    def get(self, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str, str]:
        assert self.probes.port is not None
        connection = http.client.HTTPConnection("127.0.0.1", self.probes.port, timeout=5)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
        finally:
            connection.close()


@pytest.fixture
def asked() -> Iterator[Asked]:
    made = Asked()
    yield made
    made.probes.close()


def test_live_is_not_ready(asked: Asked) -> None:
    asked.ready = lambda: False
    assert asked.get("/healthz")[0] == 200
    assert asked.get("/readyz")[0] == 503


def test_ready_says_so(asked: Asked) -> None:
    assert asked.get("/readyz") == (200, "text/plain; charset=utf-8", "ready\n")


def test_a_readiness_that_fails_is_no_readiness_and_tells_nothing(asked: Asked) -> None:
    def fails() -> bool:
        raise OSError("secret")

    asked.ready = fails
    assert asked.get("/readyz") == (503, "text/plain; charset=utf-8", "not ready\n")


def test_metrics_are_those_of_the_registry(asked: Asked) -> None:
    Counter("gateway_calls", "Calls.", registry=asked.registry).inc(3)
    status, kind, body = asked.get("/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    assert "gateway_calls_total 3.0" in body


def test_metrics_come_as_openmetrics_where_asked(asked: Asked) -> None:
    _, kind, body = asked.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_a_head_request_has_no_body(asked: Asked) -> None:
    assert asked.get("/healthz", "HEAD") == (200, "text/plain; charset=utf-8", "")


@pytest.mark.parametrize("path", ["/", "/debug", "/healthz/", "/../healthz"])
def test_there_is_nothing_else(asked: Asked, path: str) -> None:
    assert asked.get(path)[0] == 404


def test_nothing_can_be_posted(asked: Asked) -> None:
    assert asked.get("/healthz", "POST")[0] == 501


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_the_answer_names_no_software(asked: Asked, method: bytes) -> None:
    with socket.create_connection(("127.0.0.1", asked.probes.port or 0), timeout=5) as connection:
        connection.sendall(method + b" /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b"Python" not in answer


def test_no_address_is_no_port() -> None:
    with start_probes(None, lambda: True) as probes:
        assert probes.port is None


def test_a_port_in_use_is_a_clear_error(asked: Asked) -> None:
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{asked.probes.port} for probes"):
        start_probes(f"127.0.0.1:{asked.probes.port}", lambda: True)


def test_closing_frees_the_port(asked: Asked) -> None:
    port = asked.probes.port
    asked.probes.close()
    asked.probes.close()
    again: Probes = start_probes(f"127.0.0.1:{port}", lambda: True)
    again.close()
