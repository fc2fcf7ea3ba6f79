"""Every method of admin, tried by everybody who may not call it."""

from __future__ import annotations

import datetime

import grpc
import pytest
from google.protobuf import message_factory

from gateway.clock import to_text
from gateway.rpc.access import AccessError, check_rows, methods_of
from gateway.rpc.channel import OPTIONS
from gateway.rpc.identity import create_authority, issue
from gateway.sessions import hash_session_token
from gateway.storage import models
from gateway.storage.administrators import bootstrap
from gateway.stubs.admin.v1 import (
    adjustments_pb2,
    audit_pb2,
    identities_pb2,
    prices_pb2,
    requests_pb2,
    sessions_pb2,
    tokens_pb2,
    usage_pb2,
)
from gateway.tokens import generate
from services.admin.access import ACCESS, SERVICES
from tests.admin.conftest import bearer

_FILES = (sessions_pb2, tokens_pb2, requests_pb2, audit_pb2, adjustments_pb2, prices_pb2, usage_pb2, identities_pb2)
METHODS = [
    (service.full_name, method)
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}

ONE_TIME_ONLY = {"Logout", "GetSession", "ChangePassword"}


def attempt(channel, service, method, metadata=()):
    """The status of a call with an empty message."""
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = kind(
        f"/{service}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    request = message_factory.GetMessageClass(method.input_type)()
    try:
        answer = call(request, metadata=metadata, timeout=5)
        if method.server_streaming:
            next(iter(answer))
            answer.cancel()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def named(name):
    return next(found for found in METHODS if found[1].name == name)


@pytest.fixture
def nothing_changes(admin):
    """Fails where a call left something behind."""

    def rows():
        tables = (models.ClientToken, models.AuditRecord, models.Session, models.Administrator, models.LoginAttempt)
        return [(table.__name__, list(table.select().tuples().execute(admin.db))) for table in tables]

    def compare():
        assert rows() == before

    before = rows()
    yield
    compare()


def test_the_descriptors_hold_what_is_served():
    assert {service for service, _ in METHODS} == set(SERVICES)


def test_a_method_without_a_row_keeps_the_server_from_starting():
    check_rows(SERVICES, ACCESS)
    for method in methods_of(SERVICES[1]):
        with pytest.raises(AccessError):
            check_rows(SERVICES, {name: rule for name, rule in ACCESS.items() if name != method})


@pytest.mark.parametrize("identity", ["auth", "proxy", "billing", "admin"])
def test_an_identity_without_a_session_opens_nothing(admin, call, nothing_changes, identity):
    for service, method in METHODS:
        if (method.name, identity) != ("Login", "proxy"):
            assert attempt(call(identity).channel, service, method) in REFUSED, method.name


@pytest.mark.parametrize("secret", ["garbage", "gzs_" + "A" * 43, "a client token", "", "Bearer x"])
def test_garbage_and_client_tokens_are_no_sessions(admin, call, nothing_changes, secret):
    secret = generate() if secret == "a client token" else secret
    for service, method in METHODS:
        if method.name != "Login":
            assert attempt(call("proxy").channel, service, method, bearer(secret)) in REFUSED, method.name


@pytest.fixture
def ended_sessions(admin, call, clock):
    """Secrets of sessions that were logged out, unused for too long, too old."""
    caller = call("proxy")
    logged_out, idle, old = (caller.login() for _ in range(3))
    caller.sessions.Logout(sessions_pb2.LogoutRequest(), metadata=bearer(logged_out))
    row, created = models.Session, clock.now() - datetime.timedelta(hours=12)
    for secret, values in (
        (idle, {"last_used_at": to_text(clock.now() - datetime.timedelta(minutes=30))}),
        (old, {"created_at": to_text(created), "expires_at": to_text(clock.now())}),
    ):
        row.update(**values).where(row.token_hash == hash_session_token(secret).hex()).execute(admin.db)
    return [logged_out, idle, old]


def test_sessions_that_have_ended_open_no_method(admin, call, ended_sessions, request):
    request.getfixturevalue("nothing_changes")
    for service, method in METHODS:
        if method.name != "Login":
            for secret in ended_sessions:
                assert attempt(call("proxy").channel, service, method, bearer(secret)) in REFUSED


def test_a_session_by_a_one_time_password_may_only_change_it(admin, call, clock):
    models.Session.delete().execute(admin.db)
    models.Administrator.delete().execute(admin.db)
    secret = call("proxy").login(bootstrap(admin.db, None, clock=clock))
    for service, method in METHODS:
        code = attempt(call("proxy").channel, service, method, bearer(secret))
        if method.name == "Login":
            continue
        assert (code is grpc.StatusCode.PERMISSION_DENIED) is (method.name not in ONE_TIME_ONLY), method.name
        if method.name == "Logout":
            models.Session.update(revoked_at=None).execute(admin.db)


def test_an_administrator_sets_nobody_elses_password(admin, call):
    secret = call("proxy").login()
    assert attempt(call("proxy").channel, *named("SetPassword"), bearer(secret)) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("kind", ["plain text", "no certificate", "another authority"])
def test_a_neighbour_on_the_network_opens_nothing(admin, tmp_path, kind):
    target, options = f"127.0.0.1:{admin.port}", (*OPTIONS, ("grpc.ssl_target_name_override", "admin.gateway.internal"))
    own = admin.identities["operator"]
    if kind == "plain text":
        channel = grpc.insecure_channel(target)
    elif kind == "no certificate":
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(own.ca), options=options)
    else:
        create_authority(tmp_path / "ca")
        foreign = issue(tmp_path / "ca", "operator", tmp_path / "operator")
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(own.ca, foreign.key, foreign.cert), options=options)
    with channel:
        for service, method in METHODS:
            assert attempt(channel, service, method) is grpc.StatusCode.UNAVAILABLE


def test_the_operator_needs_no_session(admin, call):
    assert attempt(call("operator").channel, *named("ListTokens")) is grpc.StatusCode.OK
