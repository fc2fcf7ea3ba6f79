"""Every method of the auth service, from its descriptor, against every kind of stranger."""

from __future__ import annotations

import grpc
import pytest

from gateway.rpc.access import methods_of
from gateway.stubs.auth.v1 import auth_pb2
from services.auth.access import ACCESS, SERVICE

METHODS = auth_pb2.DESCRIPTOR.services_by_name["AuthService"].methods_by_name


def call(channel, name):
    """The method with an empty request, as anyone can form it; of `ValidateToken`, what more identities may have: a dry run."""
    method = METHODS[name]
    invoke = channel.unary_unary(f"/{SERVICE}/{name}", request_serializer=lambda m: m.SerializeToString())
    from google.protobuf.message_factory import GetMessageClass

    message = GetMessageClass(method.input_type)()
    if name == "ValidateToken":
        message.dry_run = True
    invoke(message, timeout=5)


def code_of(channel, name):
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, name)
    return caught.value.code()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_who_brings_no_certificate_reaches_no_method(auth, name):
    with grpc.insecure_channel(f"127.0.0.1:{auth.port}") as plain:
        assert code_of(plain, name) is grpc.StatusCode.UNAVAILABLE
    credentials = grpc.ssl_channel_credentials(root_certificates=auth.identities["auth"].ca)
    options = (("grpc.ssl_target_name_override", "auth.gateway.internal"),)
    with grpc.secure_channel(f"127.0.0.1:{auth.port}", credentials, options=options) as nameless:
        assert code_of(nameless, name) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("identity", ["admin", "auth", "operator", "billing", "importer"])
def test_an_identity_reaches_the_methods_of_its_row_and_no_other(auth, name, identity):
    from gateway.rpc.channel import sync_channel

    rule = ACCESS[f"/{SERVICE}/{name}"]
    named = {"billing": {"ValidateToken", "RecordUsage", "RenewLease"}, "importer": {"RecordUsage"}}
    allowed = identity in rule.identities or (rule.named and name in named.get(identity, set()))
    with sync_channel(f"127.0.0.1:{auth.port}", auth.identities[identity], "auth") as channel:
        if allowed:
            try:
                call(channel, name)
            except grpc.RpcError as error:
                assert error.code() is not grpc.StatusCode.PERMISSION_DENIED
        else:
            assert code_of(channel, name) is grpc.StatusCode.PERMISSION_DENIED
    assert auth.db.query("SELECT * FROM requests") == []


def test_the_table_has_a_row_for_each_method_and_no_other():
    assert set(ACCESS) == set(methods_of(SERVICE))
