"""The admin server with everything in it, for `__main__` and for tests."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from gateway.clock import Clock
from gateway.process.metrics import RpcMetrics
from gateway.rpc.access import IssuedUntil
from gateway.rpc.identity import Identity
from gateway.rpc.server import Server, build_server
from gateway.storage.adjustments import AdjustmentStore
from gateway.storage.administrators import AdministratorStore
from gateway.storage.audit import AuditLog
from gateway.storage.customers import CustomerStore
from gateway.storage.database import Database
from gateway.storage.price_list import PriceList
from gateway.storage.request_log import RequestLog
from gateway.storage.revoked_identities import RevokedIdentityStore
from gateway.storage.sessions import SessionStore
from gateway.storage.tokens import TokenStore
from gateway.stubs.admin.v1 import (
    adjustments_pb2_grpc,
    audit_pb2_grpc,
    identities_pb2_grpc,
    prices_pb2_grpc,
    requests_pb2_grpc,
    sessions_pb2_grpc,
    tokens_pb2_grpc,
    usage_pb2_grpc,
)
from services.admin.access import ACCESS, SERVICES
from services.admin.adjustments import AdjustmentServicer
from services.admin.audit import AuditServicer
from services.admin.identities import IdentityServicer
from services.admin.metrics import AdminMetrics
from services.admin.prices import PriceServicer
from services.admin.requests import MAX_TAILS, RequestLogServicer
from services.admin.sessions import SessionServicer
from services.admin.tokens import TokenServicer
from services.admin.usage import UsageServicer

_OTHER_CALLS = 16


def make_server(
    *,
    db: Database,
    identity: Identity,
    revoked: IssuedUntil,
    token_key: bytes,
    clock: Clock,
    registry: CollectorRegistry,
    metrics: AdminMetrics,
) -> Server:
    """The server, not yet bound and not yet started.

    db: with the schema of this release. token_key: the installation's, 32 bytes. revoked: which certificates are no
    longer valid. registry: where the RPCs are counted.
    metrics: where logins are.
    """
    sessions = SessionStore(db, clock=clock)
    server = build_server(
        identity,
        SERVICES,
        ACCESS,
        threads=MAX_TAILS + _OTHER_CALLS,  # so that those who follow the log leave room for everyone else
        check_session=lambda secret, _: sessions.check(secret),
        revoked=revoked,
        observe=RpcMetrics(registry, ACCESS).handled,
    )
    sessions_pb2_grpc.add_SessionServiceServicer_to_server(
        SessionServicer(administrators=AdministratorStore(db, clock=clock), sessions=sessions, metrics=metrics), server
    )
    tokens_pb2_grpc.add_TokenServiceServicer_to_server(
        TokenServicer(tokens=TokenStore(db, token_key=token_key, clock=clock), clock=clock), server
    )
    requests_pb2_grpc.add_RequestLogServiceServicer_to_server(RequestLogServicer(requests=RequestLog(db), clock=clock), server)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(audit=AuditLog(db)), server)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(customers=CustomerStore(db)), server)
    adjustments_pb2_grpc.add_AdjustmentServiceServicer_to_server(
        AdjustmentServicer(adjustments=AdjustmentStore(db, token_key=token_key, clock=clock)), server
    )
    prices_pb2_grpc.add_PriceServiceServicer_to_server(
        PriceServicer(prices=PriceList(db, token_key=token_key, clock=clock)), server
    )
    identities_pb2_grpc.add_IdentityServiceServicer_to_server(
        IdentityServicer(revoked=RevokedIdentityStore(db, clock=clock)), server
    )
    return server
