"""The auth server with everything in it, for `__main__` and for tests."""

from __future__ import annotations

from gateway.clock import Clock
from gateway.rpc.identity import Identity
from gateway.rpc.server import Server, build_server
from gateway.storage.database import Database
from gateway.storage.ledger import Ledger
from gateway.stubs.auth.v1 import auth_pb2_grpc
from services.auth.access import ACCESS, SERVICE
from services.auth.denials import DenialLog
from services.auth.servicer import AuthServicer

# Each waits for the writer most of the time; the proxies have two batches in flight each.
_THREADS = 32


def make_server(
    *, db: Database, ledger: Ledger, denials: DenialLog, identity: Identity, token_key: bytes, clock: Clock
) -> Server:
    """The server, not yet bound and not yet started.

    db: with the schema of this release. token_key: the installation's, 32 bytes.
    """
    server = build_server(identity, [SERVICE], ACCESS, threads=_THREADS)
    servicer = AuthServicer(db=db, ledger=ledger, denials=denials, token_key=token_key, clock=clock)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, server)
    return server
