"""The services' internal ports: every metric is documented, every documented one is there, and they tell what happened."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.suite.conftest import ADMIN_PASSWORD, Installation, Installer
from tests.suite.load import calls
from tests.suite.stack import free_port, wait_for

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
ALERTS = DOCUMENT.parents[1] / "deploy" / "prometheus" / "alerts.yml"
SECTIONS = {"Every service": ("auth", "admin", "proxy"), "auth and admin": ("auth", "admin")}
SECTIONS |= {service: (service,) for service in ("auth", "admin", "proxy")}


def documented() -> dict[str, dict[str, str]]:
    """The metrics of each service with their types, as the document has them."""
    found: dict[str, dict[str, str]] = {"auth": {}, "admin": {}, "proxy": {}}
    services: tuple[str, ...] = ()
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            services = SECTIONS[line[3:]]
        elif match := re.match(r"\| `([a-z_]+)` \| (\w+) \|", line):
            for service in services:
                assert match[1] not in found[service], f"{match[1]} stands there twice"
                found[service][match[1]] = match[2]
    return found


def test_alerts_speak_of_metrics_that_there_are():
    known = {name for metrics in documented().values() for name in metrics}
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    named = {name.removesuffix("_bucket") for rule in rules for name in re.findall(r"gateway_[a-z_]+", rule["expr"])}
    assert named
    assert named <= known


class Ports:
    """The metrics of a running installation."""

    def __init__(self) -> None:
        self.ports = {service: free_port() for service in ("auth", "admin", "proxy")}

    @property
    def settings(self) -> dict[str, str]:
        return {f"GATEWAY_{name.upper()}_METRICS_ADDRESS": f"127.0.0.1:{port}" for name, port in self.ports.items()}

    def text(self, service: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[service]}/metrics", timeout=5) as answer:
            return answer.read().decode()

    def types(self, service: str) -> dict[str, str]:
        families = text_string_to_metric_families(self.text(service))
        return {f"{family.name}_total" if family.type == "counter" else family.name: family.type for family in families}

    def value(self, service: str, name: str, **labels: str) -> float:
        """The sum of the series with these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.text(service))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@pytest.fixture
def ports() -> Ports:
    return Ports()


async def test_what_is_told_is_what_is_documented_and_what_happened(fresh: Installer, ports: Ports):
    suite = fresh("auth", "admin", "proxy", **ports.settings)
    ports.ports["auth"] = suite.stack.probe_ports["auth"]
    for port in ports.ports.values():
        wait_for("it answers", lambda port=port: suite.stack.listens(port))
    for service, metrics in documented().items():
        told = ports.types(service)
        assert told == metrics, (service, set(told) ^ set(metrics))
    token = suite.token(max_amount=1, allowed_models="gpt-test")
    await calls(suite.stack.base_url, token, 5, at_once=1, model="gpt-test")
    await calls(suite.stack.base_url, token, 2, at_once=1, model="mock-plain")
    await calls(suite.stack.base_url, "nobody-has-this-token", 3, at_once=3, model="gpt-test")
    log_in(suite, "wrong-password-of-the-test")
    log_in(suite, ADMIN_PASSWORD)
    wait_for("all is settled", lambda: ports.value("auth", "gateway_auth_settlements_total", source="provider") >= 5)
    value = ports.value
    assert value("auth", "gateway_auth_admissions_total", outcome="granted") == 5
    assert value("auth", "gateway_auth_admissions_total", reason="MODEL_NOT_ALLOWED") == 2
    assert value("auth", "gateway_auth_admissions_total", reason="TOKEN_UNKNOWN") == 3
    assert value("auth", "gateway_database_up") == value("admin", "gateway_database_up") == 1
    assert value("proxy", "gateway_proxy_requests_total", endpoint="chat", status="200") == 5
    assert value("proxy", "gateway_proxy_refusals_total", reason="TOKEN_UNKNOWN") == 3
    assert value("proxy", "gateway_proxy_upstream_attempts_total", provider="mock", outcome="2xx") == 5
    assert value("proxy", "gateway_proxy_time_to_first_byte_seconds_count") == 5
    assert value("proxy", "gateway_proxy_auth_batch_calls_sum") >= 10
    assert value("proxy", "gateway_proxy_outbox_pending") == value("proxy", "gateway_proxy_outbox_oldest_seconds") == 0
    assert value("admin", "gateway_admin_logins_total", outcome="failed") == 1
    assert value("admin", "gateway_admin_logins_total", outcome="succeeded") == 1
    assert value("admin", "gateway_rpc_server_handled_total", method="Login", code="UNAUTHENTICATED") == 1
    for service in ports.ports:
        text = ports.text(service)
        for secret in (token, "nobody-has-this-token", "mock-plain", "wrong-password"):
            assert secret not in text
    suite.stack.stop("auth")
    wait_for("it tells that auth is gone", lambda: value("proxy", "gateway_proxy_auth_up") == 0, seconds=6)


def log_in(suite: Installation, password: str) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{suite.stack.http_port}/auth/login",
        data=f'{{"username": "admin", "password": "{password}"}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as refused:
        refused.close()
