"""An admin service as it runs: real database, certificates and server on loopback, and a clock that the test moves."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from gateway.clock import to_text
from gateway.rpc.access import none_revoked
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity
from gateway.rpc.server import bind
from gateway.storage import models
from gateway.storage.database import Database, connect
from gateway.storage.migrate import migrate
from gateway.storage.passwords import hash_password
from gateway.stubs.admin.v1 import (
    audit_pb2_grpc,
    requests_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    tokens_pb2_grpc,
)
from services.admin.app import make_server
from services.admin.metrics import AdminMetrics
from tests.admin.door import Door, open_door
from tests.support.certificates import make_identities
from tests.support.databases import BOTH
from tests.support.postgres import shared_server

PASSWORD = "a-long-enough-phrase"
TOKEN_KEY = bytes(range(32))


class MovableClock:
    """A wall clock that stands still until the test moves it; the monotonic one moves along."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()

    def move(self, **span: float) -> None:
        self.moment += timedelta(**span)


@dataclass
class Admin:
    """The service and what is needed to call it."""

    db: Database
    clock: MovableClock
    port: int
    identities: dict[str, Identity]

    def channel(self, identity: str) -> grpc.Channel:
        return sync_channel(f"127.0.0.1:{self.port}", self.identities[identity], "admin")


class Caller:
    """The stubs of one identity, with a session or without."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.tokens = tokens_pb2_grpc.TokenServiceStub(channel)
        self.sessions = sessions_pb2_grpc.SessionServiceStub(channel)
        self.requests = requests_pb2_grpc.RequestLogServiceStub(channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(channel)

    def login(self, password: str = PASSWORD, username: str = "admin", *, ip: str = "203.0.113.9") -> str:
        request = sessions_pb2.LoginRequest(username=username, password=password)
        metadata = (("x-client-ip", ip), ("x-user-agent", "pytest"))
        return self.sessions.Login(request, metadata=metadata).session_token


def bearer(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"), ("x-client-ip", "203.0.113.9"))


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    folder = tmp_path_factory.mktemp("pki")
    return make_identities(folder, "admin", "auth", "proxy", "operator", "billing")


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a database with nothing but its schema."""
    path = tmp_path_factory.mktemp("empty") / "gateway.db"
    database = connect(f"sqlite:///{path}")
    migrate(database)
    database.tend(last=True)
    database.close()
    return path


@pytest.fixture(scope="session")
def empty_postgres() -> str:
    """The name of a PostgreSQL database with nothing but its schema."""
    url = shared_server().create()
    database = connect(url)
    migrate(database)
    database.close()
    return url.rpartition("/")[2]


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of the test's own, with nothing but its schema: a copy costs a tenth of a migration."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "gateway.db")
        yield f"sqlite:///{tmp_path}/gateway.db"
        return
    url = shared_server().create(request.getfixturevalue("empty_postgres"))
    yield url
    shared_server().drop(url)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = connect(database_url, busy_timeout=2.0)
    yield database
    database.close()


@pytest.fixture(scope="session")
def password_hash() -> str:
    return hash_password(PASSWORD)


@pytest.fixture
def admin(db: Database, clock: MovableClock, identities: dict[str, Identity], password_hash: str) -> Iterator[Admin]:
    """The service, with the administrator `admin`."""
    models.Administrator.insert(username="admin", password_hash=password_hash, created_at=to_text(clock.now())).execute(db)
    server = make_server(
        db=db,
        identity=identities["admin"],
        revoked=none_revoked,
        token_key=TOKEN_KEY,
        clock=clock,
        registry=CollectorRegistry(),
        metrics=AdminMetrics(CollectorRegistry()),
    )
    port = bind(server, "127.0.0.1:0", identities["admin"])
    server.start()
    server.set_serving(True)
    yield Admin(db, clock, port, identities)
    server.stop(0).wait(5)


@pytest.fixture
def call(admin: Admin) -> Iterator[Callable[[str], Caller]]:
    channels: dict[str, Caller] = {}

    def of(identity: str) -> Caller:
        if identity not in channels:
            channels[identity] = Caller(admin.channel(identity))
        return channels[identity]

    yield of
    for caller in channels.values():
        caller.channel.close()


@pytest.fixture
def tokens(call: Callable[[str], Caller]) -> tokens_pb2_grpc.TokenServiceStub:
    """TokenService, as the operator calls it."""
    return call("operator").tokens


@pytest.fixture
async def door(admin: Admin) -> AsyncIterator[Door]:
    """The HTTP door before the admin service, with a session."""
    async with open_door(admin.port, admin.identities) as opened:
        opened.secret = (await opened.login(PASSWORD)).json["session_token"]
        yield opened
