"""Servicers alone, without a server: what they ask of a store, and what they make of its answer."""

from __future__ import annotations

import grpc
import grpc_testing
import pytest

from gateway.rpc.access import Principal, acting_as
from gateway.rpc.identity import Caller
from gateway.storage.audit import AuditLog
from gateway.storage.tokens import TokenStore
from gateway.stubs.admin.v1 import audit_pb2, tokens_pb2
from services.admin.audit import AuditServicer
from services.admin.tokens import TokenServicer
from tests.admin.conftest import TOKEN_KEY

TOKENS = tokens_pb2.DESCRIPTOR.services_by_name["TokenService"]
AUDIT = audit_pb2.DESCRIPTOR.services_by_name["AuditService"]


@pytest.fixture
def server(db, clock):
    return grpc_testing.server_from_dictionary(
        {
            TOKENS: TokenServicer(tokens=TokenStore(db, token_key=TOKEN_KEY, clock=clock), clock=clock),
            AUDIT: AuditServicer(audit=AuditLog(db)),
        },
        grpc_testing.strict_real_time(),
    )


def test_a_token_is_made_in_the_name_of_who_calls(db, clock):
    servicer = TokenServicer(tokens=TokenStore(db, token_key=TOKEN_KEY, clock=clock), clock=clock)

    class Context:
        """What the servicer asks of a call."""

        def auth_context(self):
            return {}

        def invocation_metadata(self):
            return (("x-client-ip", "203.0.113.9"),)

        def peer(self):
            return "ipv6:%5B::1%5D:5000"

    with acting_as(Principal("admin:eve", Caller("billing"))):
        made = servicer.CreateToken(tokens_pb2.CreateTokenRequest(), Context())
    assert made.token.version == 1
    (entry,) = AuditLog(db).page(limit=10)
    assert (entry.actor, entry.client_ip) == ("admin:eve", "::1")


def test_lists_answer_with_pages(server):
    for service, request in ((TOKENS, tokens_pb2.ListTokensRequest()), (AUDIT, audit_pb2.ListAuditRecordsRequest())):
        method = next(method for method in service.methods if method.name.startswith("List"))
        call = server.invoke_unary_unary(method, (), request, None)
        response, _, code, _ = call.termination()
        assert code is grpc.StatusCode.OK
        assert response.next_page_token == ""
