"""Live is not ready: each service tells within seconds that something which it needs is gone, and that it is back."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity
from tests.suite.conftest import Installation, Installer
from tests.suite.stack import free_port, wait_for
from tests.support.postgres import shared_server

SOON = 6.0  # seconds: five, and one for a busy machine
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def status(port: int, path: str) -> int:
    """The HTTP status at an internal port; 0: nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code
    except OSError:
        return 0


def health(suite: Installation, service: str, port: int) -> int:
    operator = Identity.load(suite.stack.data / "pki" / "operator")
    with grpc.secure_channel(
        f"127.0.0.1:{port}",
        grpc.ssl_channel_credentials(operator.ca, operator.key, operator.cert),
        (("grpc.ssl_target_name_override", f"{service}.gateway.internal"),),
    ) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status


def test_a_database_that_is_away_makes_auth_and_admin_not_ready_and_not_dead(postgres: Installer):
    admin_probes = free_port()
    suite = postgres("auth", "admin", "proxy", GATEWAY_ADMIN_METRICS_ADDRESS=f"127.0.0.1:{admin_probes}")
    ports = {"auth": suite.stack.probe_ports["auth"], "admin": admin_probes}
    rpc = {"auth": suite.stack.auth_port, "admin": suite.stack.admin_port}
    for port in ports.values():
        wait_for("it is ready", lambda port=port: status(port, "/readyz") == 200)
    shared_server().stop()
    try:
        for service, port in ports.items():
            wait_for("it says so", lambda port=port: status(port, "/readyz") == 503, seconds=SOON)
            assert status(port, "/healthz") == 200
            assert health(suite, service, rpc[service]) == NOT_SERVING
    finally:
        shared_server().start()
    for service, port in ports.items():
        wait_for("it is back", lambda port=port: status(port, "/readyz") == 200, seconds=SOON)
        assert health(suite, service, rpc[service]) == SERVING
    suite.stack.wait_until_ready(10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB for an outbox."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs rights that this process does not have")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_an_outbox_that_cannot_be_written_makes_the_proxy_not_ready_and_not_dead(fresh: Installer, small_disk: Path):
    probes = free_port()
    suite = fresh(
        "auth",
        "proxy",
        GATEWAY_OUTBOX_DIR=str(small_disk / "outbox"),
        GATEWAY_PROXY_METRICS_ADDRESS=f"127.0.0.1:{probes}",
    )
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            if file.write(bytes(65536)) < 65536:
                file.write(bytes(65536))
    token = suite.token()
    wait_for("it says so", lambda: refused(suite, token) and suite.stack.status("/readyz") == 503, seconds=SOON)
    assert suite.stack.status("/healthz") == status(probes, "/healthz") == 200
    assert status(probes, "/readyz") == 503
    ballast.unlink()
    wait_for("it is back", lambda: status(probes, "/readyz") == 200, seconds=SOON)
    suite.stack.wait_until_ready(5)


def refused(suite: Installation, token: str) -> bool:
    """Whether a call is refused for want of a place to write it down: calls are what meets the disk first."""
    request = urllib.request.Request(
        f"{suite.stack.base_url}/chat/completions",
        data=json.dumps({"model": "gpt-test", "messages": [{"role": "user", "content": "x"}]}).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as answer:
        with answer:
            return bool(json.load(answer)["error"]["code"] == "outbox_unavailable")
    return False


@pytest.mark.parametrize("service", ["auth", "admin"])
def test_health_says_not_serving_before_anything_is_closed(fresh: Installer, service: str):
    probes = free_port()
    settings = {} if service == "auth" else {"GATEWAY_ADMIN_METRICS_ADDRESS": f"127.0.0.1:{probes}"}
    suite = fresh(service, ready=False, GATEWAY_LAME_DUCK="2", **settings)
    probes = suite.stack.probe_ports["auth"] if service == "auth" else probes
    port = suite.stack.auth_port if service == "auth" else suite.stack.admin_port
    wait_for("it is ready", lambda: status(probes, "/readyz") == 200)
    operator = Identity.load(suite.stack.data / "pki" / "operator")
    with sync_channel(f"127.0.0.1:{port}", operator, service) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watched).status == SERVING
        suite.stack.processes[service].terminate()
        assert next(watched).status == NOT_SERVING
        assert status(probes, "/readyz") == 503
        assert status(probes, "/healthz") == 200
        assert suite.stack.processes[service].poll() is None
        assert health(suite, service, port) == NOT_SERVING  # a new connection: the port is still open
    assert suite.stack.processes[service].wait(10) == 0
