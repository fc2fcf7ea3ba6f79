"""A server: who gets in, what it says about itself, how it stops."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.rpc.access import AccessError, Rule, methods_of
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity, create_authority, issue
from gateway.rpc.server import BindError, bind, build_server
from gateway.stubs.admin.v1 import requests_pb2, requests_pb2_grpc
from gateway.stubs.auth.v1 import auth_pb2, auth_pb2_grpc
from tests.gateway.conftest import AUTH, REQUESTS, SESSIONS, TABLE, Loopback
from tests.support.certificates import authority

EVERY_METHOD = [*methods_of(AUTH), *methods_of(SESSIONS), *methods_of(REQUESTS)]
INFRASTRUCTURE = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]


def refusal(channel: grpc.Channel, method: str) -> grpc.StatusCode:
    """How an empty call of a method ends."""
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(method)(b"", timeout=5))  # type: ignore[call-overload]
    code: grpc.StatusCode = caught.value.code()
    return code


@pytest.fixture
def foreign(tmp_path: Path) -> dict[str, Identity]:
    """The same names from another installation."""
    create_authority(tmp_path / "ca")
    return {name: issue(tmp_path / "ca", name, tmp_path / name) for name in ("proxy", "auth")}


@pytest.fixture
def intruders(
    loopback: Loopback, identities: dict[str, Identity], foreign: dict[str, Identity], tmp_path: Path
) -> Iterator[dict[str, grpc.Channel]]:
    """Channels of everyone whom the handshake must not let in."""
    ours, theirs = identities["proxy"], foreign["proxy"]
    expired = issue(authority() / "ca", "proxy", tmp_path / "expired", days=-1)
    options = [("grpc.ssl_target_name_override", "auth.gateway.internal"), ("grpc.enable_http_proxy", 0)]

    def secure(*credentials: bytes | None) -> grpc.Channel:
        return grpc.secure_channel(loopback.address, grpc.ssl_channel_credentials(*credentials), options=options)

    channels = {
        "plain text": grpc.insecure_channel(loopback.address, options=options),
        "no certificate": secure(ours.ca),
        "another authority": secure(ours.ca, theirs.key, theirs.cert),
        "self-signed": secure(ours.ca, *_self_signed()),
        "expired": sync_channel(loopback.address, expired, "auth"),
    }
    yield channels
    for channel in channels.values():
        channel.close()


def _self_signed() -> tuple[bytes, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        create_authority(folder)
        return (Path(folder) / "ca.key").read_bytes(), (Path(folder) / "ca.pem").read_bytes()


@pytest.mark.parametrize("who", ["plain text", "no certificate", "another authority", "self-signed", "expired"])
def test_no_method_answers_without_a_valid_certificate_of_this_installation(
    intruders: dict[str, grpc.Channel], loopback: Loopback, who: str
) -> None:
    called = threading.Event()
    loopback.auth.beat = lambda request, context: called.set()
    for method in [*EVERY_METHOD, *INFRASTRUCTURE]:
        assert refusal(intruders[who], method) is grpc.StatusCode.UNAVAILABLE, method
    assert not called.is_set()


def test_every_method_refuses_an_identity_without_a_right_to_it(loopback: Loopback, identities: dict[str, Identity]) -> None:
    channel = loopback.channel(identities["stranger"])
    for method in EVERY_METHOD:
        if method.endswith("/Login"):  # anyone's, in the table of these tests
            continue
        expected = grpc.StatusCode.UNAUTHENTICATED if TABLE[method].roles else grpc.StatusCode.PERMISSION_DENIED
        assert refusal(channel, method) is expected, method


def test_a_client_refuses_a_server_of_another_name(loopback: Loopback, identities: dict[str, Identity]) -> None:
    stub = auth_pb2_grpc.AuthServiceStub(loopback.channel(identities["proxy"], "admin"))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Beat(auth_pb2.BeatRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_refuses_a_server_of_another_installation(
    foreign: dict[str, Identity], identities: dict[str, Identity]
) -> None:
    impostor = Loopback(foreign["auth"])
    try:
        stub = auth_pb2_grpc.AuthServiceStub(impostor.channel(identities["proxy"]))
        with pytest.raises(grpc.RpcError) as caught:
            stub.Beat(auth_pb2.BeatRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        impostor.close()


def test_a_proxys_certificate_cannot_pose_as_auth(identities: dict[str, Identity]) -> None:
    impostor = Loopback(identities["proxy"])
    try:
        stub = auth_pb2_grpc.AuthServiceStub(impostor.channel(identities["operator"], "proxy"))
        with pytest.raises(grpc.RpcError) as caught:
            stub.Beat(auth_pb2.BeatRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        impostor.close()


def test_a_port_without_tls_cannot_be_opened(loopback: Loopback) -> None:
    with pytest.raises(BindError, match="mutual TLS"):
        loopback.server.add_insecure_port("127.0.0.1:0")


def test_a_port_in_use_is_a_clear_error(loopback: Loopback) -> None:
    with pytest.raises(BindError, match=f"cannot listen on 127.0.0.1:{loopback.port}"):
        bind(loopback.make(), loopback.address, loopback.identity)


def test_a_service_without_a_row_for_each_method_builds_no_server(identities: dict[str, Identity]) -> None:
    table = {method: Rule(anyone=True) for method in methods_of(AUTH)}
    table.pop(f"/{AUTH}/Beat")
    with pytest.raises(AccessError, match=re.escape("no row for /gateway.auth.v1.AuthService/Beat")):
        build_server(identities["auth"], [AUTH], table)


def test_a_row_for_no_method_builds_no_server(identities: dict[str, Identity]) -> None:
    table = {method: Rule(anyone=True) for method in [*methods_of(AUTH), f"/{AUTH}/Bet"]}
    with pytest.raises(AccessError, match=re.escape("/gateway.auth.v1.AuthService/Bet")):
        build_server(identities["auth"], [AUTH], table)


def test_roles_without_anything_that_reads_sessions_build_no_server(identities: dict[str, Identity]) -> None:
    table = {method: Rule(roles=frozenset({"admin"})) for method in methods_of(AUTH)}
    with pytest.raises(AccessError, match="reads sessions"):
        build_server(identities["auth"], [AUTH], table)


def test_a_servicer_that_the_table_does_not_know_cannot_be_added(identities: dict[str, Identity]) -> None:
    server = build_server(identities["auth"], [AUTH], {method: Rule(anyone=True) for method in methods_of(AUTH)})
    with pytest.raises(AccessError, match=re.escape("no row for /gateway.admin.v1.RequestLogService/")):
        requests_pb2_grpc.add_RequestLogServiceServicer_to_server(requests_pb2_grpc.RequestLogServiceServicer(), server)


def test_health_answers_every_identity_for_the_whole_and_each_service(
    loopback: Loopback, identities: dict[str, Identity]
) -> None:
    stub = health_pb2_grpc.HealthStub(loopback.channel(identities["stranger"]))

    def statuses() -> set[int]:
        names = ("", AUTH, SESSIONS, REQUESTS)
        return {stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status for name in names}

    assert statuses() == {health_pb2.HealthCheckResponse.SERVING}
    loopback.server.set_serving(False)
    assert statuses() == {health_pb2.HealthCheckResponse.NOT_SERVING}
    assert not loopback.server.serving


def test_health_can_be_watched_by_more_readers_than_there_are_threads(
    loopback: Loopback, identities: dict[str, Identity]
) -> None:
    stub = health_pb2_grpc.HealthStub(loopback.channel(identities["proxy"]))
    watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=10) for _ in range(12)]
    assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.SERVING] * 12
    loopback.server.set_serving(False)
    assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 12
    for watch in watches:
        watch.cancel()


def reflected(channel: grpc.Channel) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = list(stub.ServerReflectionInfo(iter([request]), timeout=5))
    return {service.name for service in answers[0].list_services_response.service}


def test_reflection_names_the_services_to_every_identity(loopback: Loopback, identities: dict[str, Identity]) -> None:
    assert {AUTH, SESSIONS, REQUESTS} <= reflected(loopback.channel(identities["stranger"]))


def test_reflection_keeps_at_most_four_threads(loopback: Loopback, identities: dict[str, Identity]) -> None:
    channel = loopback.channel(identities["stranger"])
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    over = threading.Event()

    def hold() -> Iterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        over.wait(20)

    held = [stub.ServerReflectionInfo(hold(), timeout=20) for _ in range(4)]
    for stream in held:
        next(stream)
    with pytest.raises(grpc.RpcError) as caught:
        reflected(channel)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    over.set()
    for stream in held:
        stream.cancel()


def test_a_message_above_4_mib_is_refused(loopback: Loopback, identities: dict[str, Identity]) -> None:
    options = [("grpc.ssl_target_name_override", "auth.gateway.internal"), ("grpc.max_send_message_length", -1)]
    proxy = identities["proxy"]
    credentials = grpc.ssl_channel_credentials(proxy.ca, proxy.key, proxy.cert)
    with grpc.secure_channel(loopback.address, credentials, options=options) as channel:
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        stub.Beat(auth_pb2.BeatRequest(host="x" * (4 * 1024 * 1024 - 1024)), timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Beat(auth_pb2.BeatRequest(host="x" * (4 * 1024 * 1024 + 1)), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_stopping_lets_running_calls_finish_and_ends_as_soon_as_none_is_left(
    loopback: Loopback, identities: dict[str, Identity]
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(request: Any, context: Any) -> None:
        entered.set()
        assert leave.wait(10)

    loopback.auth.beat = slow
    stub = auth_pb2_grpc.AuthServiceStub(loopback.channel(identities["proxy"]))
    call = stub.Beat.future(auth_pb2.BeatRequest(), timeout=20)
    assert entered.wait(10)
    done = loopback.server.stop(60)
    assert not done.is_set()
    with sync_channel(loopback.address, identities["proxy"], "auth") as late, pytest.raises(grpc.RpcError):
        auth_pb2_grpc.AuthServiceStub(late).Beat(auth_pb2.BeatRequest(), timeout=5)
    leave.set()
    assert call.result(10) == auth_pb2.BeatResponse()
    assert done.wait(5)


def test_stopping_does_not_wait_for_watches_reflection_and_tails(loopback: Loopback, identities: dict[str, Identity]) -> None:
    over = threading.Event()

    def endless(context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(over.set)
        while not over.wait(0.05):
            yield requests_pb2.TailRequestsResponse()

    loopback.requests.tail = endless
    channel = loopback.channel(identities["operator"])
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    tail = requests_pb2_grpc.RequestLogServiceStub(channel).TailRequests(requests_pb2.TailRequestsRequest(), timeout=60)
    held = threading.Event()

    def hold() -> Iterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        held.wait(30)

    info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(hold(), timeout=60)
    for stream in (watch, tail, info):
        next(stream)
    assert loopback.server.stop(60).wait(5)
    held.set()
