"""A real auth for the tests of the client: over mutual TLS, with a real ledger, and it can be taken away and come back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry

from gateway.client import AsyncGateway, Gateway
from gateway.rpc.identity import issue
from gateway.rpc.server import Server, bind
from services.auth.app import make_server
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics
from tests.support.certificates import authority, make_identities
from tests.support.ledger import KEY, MovedClock, add_token, make_database, open_ledger

RIGHTS = ("ValidateToken", "RecordUsage", "RenewLease", "GetTokenUsage")


class RealAuth:
    """The running service. `gateway()` is a client of it in the name of an internal service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = MovedClock()
        self.identities = make_identities(folder / "pki", "auth", "admin", "proxy")
        self.issue("billing", RIGHTS)
        self.db = make_database(folder)
        self.ledger = open_ledger(self.db, self.clock)
        self.revoked: dict[str, datetime] = {}
        """Names, and up to when their certificates were issued that are refused."""
        self.port = 0
        self._server: Server | None = None
        self.start()

    def issue(self, name: str, rpcs: tuple[str, ...], rights: tuple[str, ...] = (), **more: float) -> Path:
        """An identity of an internal service; gives its folder."""
        issue(authority() / "ca", name, self.folder / name, rpcs=rpcs, rights=rights, **more)
        return self.folder / name

    def another(self) -> RealAuth:
        """A second server over the same ledger."""
        other = copy.copy(self)
        other.port = 0
        other.start()
        return other

    def start(self) -> None:
        """Listens, on the same port as before."""
        identity = self.identities["auth"]
        registry = CollectorRegistry()
        self._server = make_server(
            db=self.db,
            ledger=self.ledger,
            denials=DenialLog(self.clock),
            identity=identity,
            revoked=self.revoked.get,
            token_key=KEY,
            clock=self.clock,
            registry=registry,
            metrics=AuthMetrics(registry),
        )
        self.port = bind(self._server, f"127.0.0.1:{self.port}", identity)
        self._server.start()

    def stop(self) -> None:
        """Away, with whatever it was doing."""
        assert self._server is not None
        self._server.stop(0).wait()

    def add_token(self, secret: str, **columns: object) -> None:
        add_token(self.db, secret, **columns)  # type: ignore[arg-type] # a test's shorthand

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def gateway(self, name: str = "billing", **settings: float) -> Gateway:
        return Gateway(self.address, identity=self.folder / name, **settings)  # type: ignore[arg-type] # a test's shorthand

    def async_gateway(self, name: str = "billing", **settings: float) -> AsyncGateway:
        return AsyncGateway(self.address, identity=self.folder / name, **settings)  # type: ignore[arg-type] # a test's shorthand

    def close(self) -> None:
        self.stop()
        self.ledger.close()
        self.db.close()


@contextmanager
def real_auth(folder: Path) -> Iterator[RealAuth]:
    """An auth that stops at the end of the block."""
    auth = RealAuth(folder)
    try:
        yield auth
    finally:
        auth.close()
