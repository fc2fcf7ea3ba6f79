"""`python -m services.admin` as a process: its start, its stop, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity, create_authority, issue
from gateway.storage.administrators import bootstrap
from gateway.storage.database import connect
from gateway.storage.migrate import migrate
from gateway.stubs.admin.v1 import audit_pb2, audit_pb2_grpc, tokens_pb2, tokens_pb2_grpc
from tests.admin.conftest import PASSWORD
from tests.admin.test_http_sessions import free_port


@pytest.fixture
def installation(tmp_path):
    """A data directory as `gateway init` leaves it, and the environment that names it."""
    create_authority(tmp_path / "pki" / "ca")
    for name in ("admin", "operator"):
        issue(tmp_path / "pki" / "ca", name, tmp_path / "pki" / name)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "token.key").write_text(bytes(range(32)).hex())
    database = connect(f"sqlite:///{tmp_path}/gateway.db")
    migrate(database)
    bootstrap(database, PASSWORD)
    database.close()
    return tmp_path


@contextmanager
def running(data_dir, port) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "GATEWAY_DATA_DIR": str(data_dir),
        "GATEWAY_ADMIN_ADDRESS": f"127.0.0.1:{port}",
        "GATEWAY_LOG_LEVEL": "error",
    }
    process = subprocess.Popen([sys.executable, "-m", "services.admin"], env=environment, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def operator(data_dir, port):
    channel = sync_channel(f"127.0.0.1:{port}", Identity.load(data_dir / "pki" / "operator"), "admin")
    grpc.channel_ready_future(channel).result(timeout=20)
    return channel


def test_it_serves_and_stops_on_a_signal(installation):
    port = free_port()
    with running(installation, port) as process:
        with operator(installation, port) as channel:
            assert tokens_pb2_grpc.TokenServiceStub(channel).CreateToken(tokens_pb2.CreateTokenRequest()).token.id == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_without_an_identity_it_ends_with_one_line(installation):
    (installation / "pki" / "admin" / "key.pem").unlink()
    with running(installation, free_port()) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    (line,) = map(json.loads, errors.decode().splitlines())
    assert (line["event"], line["service"]) == ("cannot start", "admin")
    assert "key.pem" in line["fault"]


def test_what_was_acknowledged_outlives_kills_and_nothing_is_done_by_halves(installation):
    """Each token that was answered is there; each that is there has its audit record."""
    told: list[int] = []
    port = free_port()
    for _ in range(2):
        with running(installation, port) as process, operator(installation, port) as channel:
            stub = tokens_pb2_grpc.TokenServiceStub(channel)
            until = time.monotonic() + 0.4
            calls = [stub.CreateToken.future(tokens_pb2.CreateTokenRequest()) for _ in range(40)]
            while time.monotonic() < until and not all(call.done() for call in calls[:20]):
                time.sleep(0.005)
            process.kill()
            for call in calls:
                if call.exception() is None:
                    told.append(call.result().token.id)
                else:
                    assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert len(told) >= 10
    with running(installation, port), operator(installation, port) as channel:
        page = tokens_pb2_grpc.TokenServiceStub(channel).ListTokens(tokens_pb2.ListTokensRequest(page_size=1000))
        found = {token.id for token in page.tokens}
        request = audit_pb2.ListAuditRecordsRequest(action="token.create", page_size=1000)
        audited = {record.subject for record in audit_pb2_grpc.AuditServiceStub(channel).ListAuditRecords(request).records}
    assert set(told) <= found
    assert audited == {f"token:{token_id}" for token_id in found}
