"""Who may call what, over real connections: identities, rights in certificates, sessions with roles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from gateway.errors import GatewayError, PermissionDenied, Unauthenticated
from gateway.rpc.access import Principal, acting_as, principal
from gateway.rpc.identity import Caller, Identity
from gateway.rpc.status import from_status
from gateway.stubs.admin.v1 import requests_pb2, requests_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from gateway.stubs.auth.v1 import auth_pb2, auth_pb2_grpc
from tests.gateway.conftest import Loopback

ADMIN = (("authorization", "Bearer admin-secret"),)


def models(loopback: Loopback, identity: Identity) -> str:
    stub = auth_pb2_grpc.AuthServiceStub(loopback.channel(identity))
    return stub.ListModels(auth_pb2.ListModelsRequest(), timeout=5).models[0].name


def who_am_i(loopback: Loopback, identity: Identity, *metadata: tuple[str, str]) -> str:
    stub = sessions_pb2_grpc.SessionServiceStub(loopback.channel(identity))
    return stub.GetSession(sessions_pb2.GetSessionRequest(), metadata=metadata, timeout=5).session.username


def error_of(call: Any) -> GatewayError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_status(caught.value)


def test_an_identity_in_the_row_may_call_and_is_the_principal(loopback: Loopback, identities: dict[str, Identity]) -> None:
    assert models(loopback, identities["proxy"]) == "service:proxy"


def test_an_internal_service_may_call_what_its_certificate_names(loopback: Loopback, identities: dict[str, Identity]) -> None:
    assert models(loopback, identities["billing"]) == "service:billing"


def test_an_internal_service_may_not_call_what_its_certificate_does_not_name(
    loopback: Loopback, identities: dict[str, Identity]
) -> None:
    stub = auth_pb2_grpc.AuthServiceStub(loopback.channel(identities["billing"]))
    error = error_of(lambda: stub.Beat(auth_pb2.BeatRequest(), timeout=5))
    assert isinstance(error, PermissionDenied)
    assert "the identity billing may not call Beat" in error.message
    assert "`gateway identity create billing --force --out FOLDER --allow-method Beat" in error.message


def test_admin_itself_may_not_call_auth(loopback: Loopback, identities: dict[str, Identity]) -> None:
    assert isinstance(error_of(lambda: models(loopback, identities["admin"])), PermissionDenied)


def test_the_operator_needs_no_session(loopback: Loopback, identities: dict[str, Identity]) -> None:
    assert who_am_i(loopback, identities["operator"]) == "operator"


def test_a_session_of_the_right_role_opens_the_method(loopback: Loopback, identities: dict[str, Identity]) -> None:
    assert who_am_i(loopback, identities["proxy"], *ADMIN) == "admin:ann"


def test_the_check_of_sessions_sees_the_metadata(loopback: Loopback, identities: dict[str, Identity]) -> None:
    assert who_am_i(loopback, identities["proxy"], *ADMIN, ("x-name", "bob")) == "admin:bob"


def test_the_proxys_certificate_alone_opens_nothing_of_admin(loopback: Loopback, identities: dict[str, Identity]) -> None:
    error = error_of(lambda: who_am_i(loopback, identities["proxy"]))
    assert isinstance(error, Unauthenticated)
    assert "log in first" in error.message


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic admin-secret", "admin-secret", "Bearer nobody", "Bearer admin-secret2"]
)
def test_anything_but_a_live_session_is_refused(loopback: Loopback, identities: dict[str, Identity], value: str) -> None:
    error = error_of(lambda: who_am_i(loopback, identities["proxy"], ("authorization", value)))
    assert isinstance(error, Unauthenticated)


def test_two_sessions_that_differ_are_refused(loopback: Loopback, identities: dict[str, Identity]) -> None:
    error = error_of(lambda: who_am_i(loopback, identities["proxy"], *ADMIN, ("authorization", "Bearer other-secret")))
    assert error == Unauthenticated("two authorization entries differ: send one")


def test_a_session_of_another_role_is_refused(loopback: Loopback, identities: dict[str, Identity]) -> None:
    error = error_of(lambda: who_am_i(loopback, identities["proxy"], ("authorization", "Bearer password_change-secret")))
    assert isinstance(error, PermissionDenied)
    assert "password_change" in error.message


def test_a_session_does_not_open_what_is_the_operators_alone(loopback: Loopback, identities: dict[str, Identity]) -> None:
    stub = sessions_pb2_grpc.SessionServiceStub(loopback.channel(identities["proxy"]))
    request = sessions_pb2.SetPasswordRequest(username="ann", new_password="x")
    assert isinstance(error_of(lambda: stub.SetPassword(request, metadata=ADMIN, timeout=5)), PermissionDenied)


def test_a_method_for_anyone_needs_an_identity_and_no_session(loopback: Loopback, identities: dict[str, Identity]) -> None:
    stub = sessions_pb2_grpc.SessionServiceStub(loopback.channel(identities["stranger"]))
    assert stub.Login(sessions_pb2.LoginRequest(), timeout=5).session_token == "service:stranger"


def test_streams_are_checked_like_single_calls(loopback: Loopback, identities: dict[str, Identity]) -> None:
    stub = requests_pb2_grpc.RequestLogServiceStub(loopback.channel(identities["proxy"]))
    request = requests_pb2.TailRequestsRequest()
    assert isinstance(error_of(lambda: next(stub.TailRequests(request, timeout=5))), Unauthenticated)
    assert [message.cursor for message in stub.TailRequests(request, metadata=ADMIN, timeout=5)] == ["admin:ann"]


def test_the_principal_holds_for_a_stream_as_long_as_it_runs(loopback: Loopback, identities: dict[str, Identity]) -> None:
    def tail(context: grpc.ServicerContext) -> Iterator[requests_pb2.TailRequestsResponse]:
        for _ in range(3):
            yield requests_pb2.TailRequestsResponse(cursor=principal().actor)

    loopback.requests.tail = tail
    stub = requests_pb2_grpc.RequestLogServiceStub(loopback.channel(identities["operator"]))
    first = stub.TailRequests(requests_pb2.TailRequestsRequest(), timeout=5)
    second = stub.TailRequests(
        requests_pb2.TailRequestsRequest(), metadata=(("authorization", "Bearer admin-secret"),), timeout=5
    )
    assert [message.cursor for pair in zip(first, second, strict=True) for message in pair] == ["operator", "operator"] * 4


def test_no_principal_is_left_behind_outside_a_call(loopback: Loopback, identities: dict[str, Identity]) -> None:
    models(loopback, identities["proxy"])
    with pytest.raises(LookupError):
        principal()


def test_a_servicer_can_be_called_in_someones_name_without_a_server() -> None:
    with acting_as(Principal("admin:eve", Caller("proxy"))):
        assert principal().actor == "admin:eve"
    with pytest.raises(LookupError):
        principal()
