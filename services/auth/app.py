"""The auth server with everything in it, for `__main__` and for tests."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from gateway.clock import Clock
from gateway.process.metrics import RpcMetrics
from gateway.rpc.access import IssuedUntil
from gateway.rpc.identity import Identity
from gateway.rpc.server import Server, build_server
from gateway.storage.database import Database
from gateway.storage.ledger import Ledger
from gateway.stubs.auth.v1 import auth_pb2_grpc
from services.auth.access import ACCESS, SERVICE
from services.auth.decisions import Decisions
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics
from services.auth.servicer import AuthServicer

# Each waits for the writer most of the time; the proxies have two batches in flight each.
_THREADS = 32


def make_server(
    *,
    db: Database,
    ledger: Ledger,
    denials: DenialLog,
    identity: Identity,
    revoked: IssuedUntil,
    token_key: bytes,
    clock: Clock,
    registry: CollectorRegistry,
    metrics: AuthMetrics,
) -> Server:
    """The server, not yet bound and not yet started.

    db: with the schema of this release. token_key: the installation's, 32 bytes. revoked: which certificates are no
    longer valid. registry: where the RPCs are counted.
    metrics: where decisions are.
    """
    server = build_server(
        identity, [SERVICE], ACCESS, threads=_THREADS, revoked=revoked, observe=RpcMetrics(registry, ACCESS).handled
    )
    decisions = Decisions(ledger=ledger, denials=denials, metrics=metrics)
    servicer = AuthServicer(db=db, ledger=ledger, decisions=decisions, token_key=token_key, clock=clock)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, server)
    return server
