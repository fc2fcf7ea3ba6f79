"""Every RPC of the running services is closed to whoever has no certificate of this installation, or the wrong one."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity, create_authority, issue
from gateway.stubs.admin.v1 import audit_pb2, requests_pb2, sessions_pb2, tokens_pb2
from gateway.stubs.auth.v1 import auth_pb2
from tests.suite.conftest import Installation

FILES = {"auth": [auth_pb2], "admin": [sessions_pb2, tokens_pb2, requests_pb2, audit_pb2]}
METHODS = [
    pytest.param(service, method, id=method.full_name)
    for service, files in FILES.items()
    for file in files
    for descriptor in file.DESCRIPTOR.services_by_name.values()
    for method in descriptor.methods
]


def refused(channel: grpc.Channel, method: MethodDescriptor) -> grpc.StatusCode:
    """What an empty request gets; the call must fail."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    request = GetMessageClass(method.input_type)()
    with channel, pytest.raises(grpc.RpcError) as caught:
        if method.server_streaming:
            list(channel.unary_stream(path, request_serializer=type(request).SerializeToString)(request, timeout=10))
        else:
            channel.unary_unary(path, request_serializer=type(request).SerializeToString)(request, timeout=10)
    return caught.value.code()


def address(suite: Installation, service: str) -> str:
    return f"127.0.0.1:{suite.stack.auth_port if service == 'auth' else suite.stack.admin_port}"


@pytest.mark.parametrize(("service", "method"), METHODS)
def test_without_a_certificate_there_is_no_connection(suite, service, method):
    assert refused(grpc.insecure_channel(address(suite, service)), method) is grpc.StatusCode.UNAVAILABLE
    authority = (suite.stack.data / "pki" / "operator" / "ca.pem").read_bytes()
    name = (("grpc.ssl_target_name_override", f"{service}.gateway.internal"),)
    channel = grpc.secure_channel(address(suite, service), grpc.ssl_channel_credentials(authority), name)
    assert refused(channel, method) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(("service", "method"), METHODS)
def test_a_certificate_of_another_installation_is_refused(suite, service, method, stranger):
    trusting = Identity("proxy", stranger.cert, stranger.key, (suite.stack.data / "pki" / "operator" / "ca.pem").read_bytes())
    assert refused(sync_channel(address(suite, service), trusting, service), method) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(("service", "method"), METHODS)
def test_a_certificate_that_no_row_names_is_refused(suite, service, method):
    other = Identity.load(suite.stack.data / "pki" / ("admin" if service == "auth" else "auth"))
    code = refused(sync_channel(address(suite, service), other, service), method)
    assert code in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The `proxy` of another installation."""
    folder = tmp_path_factory.mktemp("elsewhere")
    create_authority(folder / "ca")
    issue(folder / "ca", "proxy", folder / "proxy")
    return Identity.load(folder / "proxy")
