"""Every line that a service writes is one JSON object, whatever strangers do at its ports."""

from __future__ import annotations

import json
import socket
import ssl

import grpc
import pytest

from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity, create_authority, issue
from tests.suite.conftest import Installation


def knock(port: int, data: bytes) -> None:
    """Sends bytes that are no TLS, and waits until the other side has had enough."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(data)
        connection.settimeout(2)
        try:
            while connection.recv(4096):
                pass
        except OSError:
            return


def test_bad_handshakes_and_bad_requests_leave_only_whole_events(suite: Installation, tmp_path):
    create_authority(tmp_path / "ca")
    issue(tmp_path / "ca", "proxy", tmp_path / "proxy")
    stranger = Identity.load(tmp_path / "proxy")
    for port in (suite.stack.auth_port, suite.stack.admin_port):
        knock(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            pytest.raises(OSError),
            context.wrap_socket(raw) as wrapped,
        ):
            wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            if not wrapped.recv(1):
                raise OSError("closed")
        with sync_channel(f"127.0.0.1:{port}", stranger, "auth") as channel, pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channel).result(1)
    knock(suite.stack.http_port, b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(200))
    knock(suite.stack.http_port, b"GET /\xff\xfe\x00\r\n\r\n")
    written = {path.name: path.read_text(errors="strict").splitlines() for path in suite.stack.logs.iterdir()}
    assert any(name.startswith("proxy") and lines for name, lines in written.items())
    for name, lines in written.items():
        for line in lines:
            event = json.loads(line)
            assert isinstance(event, dict), name
            assert event["service"] == name.partition("-")[0]
            assert {"event", "level", "timestamp"} <= event.keys()
