"""Calls of TokenService and AuditService, short enough to be read in a test."""

from __future__ import annotations

import grpc
import pytest

from gateway.rpc.status import from_status
from gateway.storage import models
from gateway.stubs.admin.v1 import audit_pb2, tokens_pb2

DOLLAR = 1_000_000_000


def create(tokens, **fields):
    more = {name: fields.pop(name) for name in ("secret", "request_id", "disabled") if name in fields}
    return tokens.CreateToken(tokens_pb2.CreateTokenRequest(token=tokens_pb2.Token(**fields), **more))


def update(tokens, token_id, *paths, version=0, **fields):
    request = tokens_pb2.UpdateTokenRequest(token=tokens_pb2.Token(id=token_id, version=version, **fields))
    request.update_mask.paths.extend(paths)
    return tokens.UpdateToken(request)


def get(tokens, token_id):
    return tokens.GetToken(tokens_pb2.GetTokenRequest(id=token_id)).token


def top_up(tokens, token_id, amount, request_id=""):
    return tokens.TopUpToken(tokens_pb2.TopUpTokenRequest(id=token_id, amount_nanos=amount, request_id=request_id)).token


def rotate(tokens, token_id, request_id=""):
    return tokens.RotateToken(tokens_pb2.RotateTokenRequest(id=token_id, request_id=request_id))


def delete(tokens, token_id):
    tokens.DeleteToken(tokens_pb2.DeleteTokenRequest(id=token_id))


def reason(call, *args, **more):
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **more)
    return from_status(caught.value).reason


def hash_in(db, token_id):
    return next(iter(models.ClientToken.select().where(models.ClientToken.id == token_id).execute(db))).token_hash


def audited(call, subject):
    request = audit_pb2.ListAuditRecordsRequest(subject=subject)
    return list(call("operator").audit.ListAuditRecords(request).records)
