"""A real auth server over mutual TLS on loopback, with a real ledger."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from gateway.rpc.access import none_revoked
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import issue
from gateway.rpc.server import bind
from gateway.stubs.auth.v1 import auth_pb2_grpc
from services.auth.app import make_server
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics
from tests.support.certificates import authority, make_identities
from tests.support.ledger import KEY, MovedClock, add_token, make_database, open_ledger


@pytest.fixture
def auth(tmp_path, database_url):
    """The running service: `stub(name)` calls it as that identity."""
    folder = tmp_path / "pki"
    identities = make_identities(folder, "auth", "admin", "proxy", "operator")
    for name, rpcs, rights in (
        ("billing", ("ValidateToken", "RecordUsage", "RenewLease"), ()),
        ("importer", ("RecordUsage",), ("record_unadmitted",)),
    ):
        identities[name] = issue(authority() / "ca", name, folder / name, rpcs=rpcs, rights=rights)
    clock = MovedClock()
    channels = []
    with closing(make_database(database_url)) as db:
        add_token(db)
        with closing(open_ledger(db, clock)) as ledger:
            denials = DenialLog(clock)
            registry = CollectorRegistry()
            server = make_server(
                db=db,
                ledger=ledger,
                denials=denials,
                identity=identities["auth"],
                revoked=none_revoked,
                token_key=KEY,
                clock=clock,
                registry=registry,
                metrics=AuthMetrics(registry),
            )
            port = bind(server, "127.0.0.1:0", identities["auth"])
            server.start()

            def stub(name: str = "proxy") -> auth_pb2_grpc.AuthServiceStub:
                channels.append(sync_channel(f"127.0.0.1:{port}", identities[name], "auth"))
                return auth_pb2_grpc.AuthServiceStub(channels[-1])

            yield SimpleNamespace(
                stub=stub,
                db=db,
                ledger=ledger,
                denials=denials,
                port=port,
                identities=identities,
                clock=clock,
                registry=registry,
            )
            for channel in channels:
                channel.close()
            server.stop(0).wait()
