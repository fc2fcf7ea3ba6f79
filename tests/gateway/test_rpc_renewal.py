"""A server shows the certificate that its directory holds when a client connects, and keeps the old one while that is bad."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from gateway.rpc.identity import Identity, expires_at, issue
from gateway.rpc.renewal import Renewal
from gateway.rpc.server import bind, build_server
from gateway.stubs.auth.v1 import auth_pb2_grpc
from tests.conftest import LogLines
from tests.gateway.conftest import AUTH, TABLE, Auth
from tests.support.certificates import authority

ROWS = {method: rule for method, rule in TABLE.items() if AUTH in method}


class Clock:
    """Moves on by more than the pause between two looks whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    issue(authority() / "ca", "auth", tmp_path / "auth", days=40)
    return tmp_path / "auth"


@pytest.fixture
def port(directory: Path) -> Iterator[int]:
    identity = Identity.load(directory)
    server = build_server(identity, [AUTH], ROWS, threads=2)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(Auth(), server)
    number = bind(server, "127.0.0.1:0", identity, renewal=Renewal(directory, identity, clock=Clock()))
    server.start()
    yield number
    server.stop(0).wait(5)


def shown(port: int, client: Identity, folder: Path) -> int:
    """The serial number of the certificate that a server shows to a client of ours."""
    for name, content in (("client.pem", client.cert), ("client.key", client.key), ("client-ca.pem", client.ca)):
        (folder / name).write_bytes(content)
    context = ssl.create_default_context(cafile=folder / "client-ca.pem")
    context.load_cert_chain(folder / "client.pem", folder / "client.key")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="auth.gateway.internal") as wrapped,
    ):
        certificate = wrapped.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def serial(directory: Path) -> int:
    return x509.load_pem_x509_certificate((directory / "cert.pem").read_bytes()).serial_number


def test_a_renewed_certificate_is_shown_from_the_next_connection_on(
    port: int, directory: Path, identities: dict[str, Identity], tmp_path: Path
):
    first = serial(directory)
    assert shown(port, identities["proxy"], tmp_path) == first
    issue(authority() / "ca", "auth", directory)
    assert serial(directory) != first
    assert shown(port, identities["proxy"], tmp_path) == serial(directory)


def test_a_certificate_without_its_key_changes_nothing_until_the_key_is_there(
    port: int, directory: Path, identities: dict[str, Identity], tmp_path: Path, log_lines: LogLines
):
    first = serial(directory)
    renewed = issue(authority() / "ca", "auth", tmp_path / "renewed")
    (directory / "cert.pem").write_bytes(renewed.cert)
    assert shown(port, identities["proxy"], tmp_path) == first
    assert [line["event"] for line in log_lines()] == ["certificate not renewed"]
    (directory / "key.pem").write_bytes(renewed.key)
    assert shown(port, identities["proxy"], tmp_path) == serial(tmp_path / "renewed")


def test_another_services_certificate_or_an_expired_one_is_not_taken_up(directory: Path, log_lines: LogLines):
    renewal = Renewal(directory, Identity.load(directory), clock=Clock())
    issue(authority() / "ca", "admin", directory)
    assert renewal.look() is None
    issue(authority() / "ca", "auth", directory, days=-1)
    assert renewal.look() is None
    assert len(log_lines()) == 2
    renewed = issue(authority() / "ca", "auth", directory)
    assert renewal.look() == renewed
    assert renewal.expires_at == expires_at(renewed)
    assert renewal.look() is None


def test_what_was_renewed_while_a_service_started_is_found_by_the_first_look(directory: Path):
    identity = Identity.load(directory)
    renewed = issue(authority() / "ca", "auth", directory)
    assert Renewal(directory, identity).look() == renewed


def test_the_files_are_looked_at_once_a_second_at_most(directory: Path):
    now = 0.0
    renewal = Renewal(directory, Identity.load(directory), clock=lambda: now)
    assert renewal.look() is None
    issue(authority() / "ca", "auth", directory)
    assert renewal.look() is None
    now = 1.0
    assert renewal.look() is not None
