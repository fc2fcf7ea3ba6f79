"""`gateway health` as a container's health check: what it says, and what it costs."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clients.cli.probe import ask, ask_by_environment
from tests.support.edge_certificates import issue

READY, NOT_READY = b"HTTP/1.1 200 OK\r\n\r\nready\n", b"HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready\n"


@contextmanager
def answering(answer: bytes, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Where one connection is answered with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with tls.wrap_socket(plain, server_side=True) if tls else plain as connection:
                assert connection.recv(4096).startswith(b"GET /readyz HTTP/1.1\r\n")
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(("answer", "ready"), [(READY, True), (NOT_READY, False), (b"", False), (b"\xff\xff\r\n", False)])
def test_ready_is_who_answers_200(answer, ready):
    with answering(answer) as listen:
        assert ask_by_environment("auth", {"GATEWAY_AUTH_METRICS_ADDRESS": listen}).ready is ready


def test_nobody_who_listens_is_not_ready():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    answer = ask_by_environment("proxy", {"GATEWAY_PROXY_METRICS_ADDRESS": f"0.0.0.0:{port}"})
    assert (answer.ready, answer.detail) == (False, f"no answer at 127.0.0.1:{port}: [Errno 111] Connection refused")


@pytest.mark.parametrize("listen", ["", "  ", "nowhere", "host:port"])
def test_without_an_address_in_the_environment_the_settings_decide(listen):
    assert ask_by_environment("auth", {"GATEWAY_AUTH_METRICS_ADDRESS": listen, "GATEWAY_DEMO_LISTEN": "127.0.0.1:1"}) is None


def test_an_edge_that_speaks_https_is_asked_whatever_its_certificate(tmp_path: Path):
    certificate, key, _ = issue()
    (tmp_path / "both.pem").write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    with answering(READY, context) as listen:
        assert ask("proxy", listen, 5.0, tls=True).ready


def test_a_health_check_loads_neither_the_settings_nor_grpc_nor_the_command_line():
    with answering(READY) as listen:
        script = "import sys; from clients.cli.__main__ import main; print(main(), *sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", script, "health", "demo"],
            env={"GATEWAY_DEMO_LISTEN": listen},
            capture_output=True,
            text=True,
            check=True,
        )
    said, modules = done.stdout.splitlines()
    assert said == f"demo\tready\tHTTP 200 at {listen}"
    assert modules.split()[0] == "0"
    assert not {"pydantic", "grpc", "cyclopts", "cryptography", "ssl", "json", "asyncio"} & set(modules.split())
