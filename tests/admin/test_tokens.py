"""Client tokens over gRPC, against a real server and database."""

from __future__ import annotations

import grpc
import pytest

from gateway.stubs.admin.v1 import tokens_pb2


@pytest.fixture
def tokens(call):
    return call("operator").tokens


def create(tokens, **fields):
    secret = fields.pop("secret", "")
    request_id = fields.pop("request_id", "")
    return tokens.CreateToken(
        tokens_pb2.CreateTokenRequest(token=tokens_pb2.Token(**fields), secret=secret, request_id=request_id)
    )


def refused(code, call, *args):
    with pytest.raises(grpc.RpcError) as caught:
        call(*args)
    assert caught.value.code() is code, caught.value.details()
    return caught.value.details()


def test_a_token_is_made_and_its_secret_told_once(tokens):
    made = create(tokens, name="app", max_amount_nanos=5_000_000_000, allowed_models=["gpt-4*"])
    assert made.secret.startswith("sk-gz-")
    assert made.token.status == tokens_pb2.TOKEN_STATUS_ACTIVE
    assert made.token.remaining_nanos == 5_000_000_000
    read = tokens.GetToken(tokens_pb2.GetTokenRequest(id=made.token.id)).token
    assert read == made.token
    assert made.secret not in str(read)


def test_a_token_without_a_name_is_called_by_its_id(tokens):
    made = create(tokens)
    assert made.token.name == f"token-{made.token.id}"
