"""A gRPC server of both contracts on loopback, the lines that were logged, settings from texts: what tests here share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.errors import Unauthenticated
from gateway.process.settings import Settings, SettingsError, load_settings
from gateway.rpc.access import AccessTable, Rule, methods_of, principal
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity, issue
from gateway.rpc.server import Server, bind, build_server
from gateway.stubs.admin.v1 import requests_pb2, requests_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from gateway.stubs.auth.v1 import auth_pb2, auth_pb2_grpc
from tests.support.certificates import authority, make_identities

AUTH = "gateway.auth.v1.AuthService"
SESSIONS = "gateway.admin.v1.SessionService"
REQUESTS = "gateway.admin.v1.RequestLogService"

_ADMIN = Rule(identities=frozenset({"operator"}), roles=frozenset({"admin"}))
TABLE: AccessTable = {
    **{method: Rule(identities=frozenset({"proxy"}), named=True) for method in methods_of(AUTH)},
    **dict.fromkeys([*methods_of(SESSIONS), *methods_of(REQUESTS)], _ADMIN),
    f"/{SESSIONS}/Login": Rule(anyone=True),
    f"/{SESSIONS}/SetPassword": Rule(identities=frozenset({"operator"})),
    f"/{REQUESTS}/TailRequests": Rule(identities=frozenset({"operator"}), roles=frozenset({"admin"}), cut_on_stop=True),
}


@dataclass(frozen=True)
class OneSession:
    """A session of the role in its secret: `admin-secret` is one of an admin."""

    username: str
    role: str


def check_session(secret: str, metadata: Mapping[str, str]) -> OneSession:
    role, _, rest = secret.partition("-")
    if rest != "secret":
        raise Unauthenticated("there is no such session: log in again")
    return OneSession(metadata.get("x-name", "ann"), role)


class Auth(auth_pb2_grpc.AuthServiceServicer):
    """Runs what a test gives it in `Beat`, and tells in `ListModels` who it thinks is calling."""

    def __init__(self) -> None:
        self.beat: Callable[[auth_pb2.BeatRequest, grpc.ServicerContext], Any] = lambda request, context: None

    def Beat(self, request: auth_pb2.BeatRequest, context: grpc.ServicerContext) -> auth_pb2.BeatResponse:
        self.beat(request, context)
        return auth_pb2.BeatResponse()

    def ListModels(self, request: auth_pb2.ListModelsRequest, context: grpc.ServicerContext) -> auth_pb2.ListModelsResponse:
        return auth_pb2.ListModelsResponse(models=[auth_pb2.Model(name=principal().actor)])


class Sessions(sessions_pb2_grpc.SessionServiceServicer):
    """Tells in whose name it is called."""

    def GetSession(self, request: Any, context: grpc.ServicerContext) -> sessions_pb2.GetSessionResponse:
        return sessions_pb2.GetSessionResponse(session=sessions_pb2.Session(username=principal().actor))

    def Login(self, request: Any, context: grpc.ServicerContext) -> sessions_pb2.LoginResponse:
        return sessions_pb2.LoginResponse(session_token=principal().actor)


class Requests(requests_pb2_grpc.RequestLogServiceServicer):
    """Tails by what a test gives it; by default one message that tells in whose name."""

    def __init__(self) -> None:
        self.tail: Callable[[grpc.ServicerContext], Iterator[Any]] = lambda context: iter(())

    def TailRequests(self, request: Any, context: grpc.ServicerContext) -> Iterator[requests_pb2.TailRequestsResponse]:
        yield requests_pb2.TailRequestsResponse(cursor=principal().actor)
        yield from self.tail(context)


class Loopback:
    """A server with all three servicers, and channels to it."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.auth, self.sessions, self.requests = Auth(), Sessions(), Requests()
        self.server = self.make()
        self.port = bind(self.server, "127.0.0.1:0", identity)
        self.server.start()
        self.server.set_serving(True)
        self._channels: list[grpc.Channel] = []

    def make(self) -> Server:
        server = build_server(self.identity, [AUTH, SESSIONS, REQUESTS], TABLE, threads=8, check_session=check_session)
        auth_pb2_grpc.add_AuthServiceServicer_to_server(self.auth, server)
        sessions_pb2_grpc.add_SessionServiceServicer_to_server(self.sessions, server)
        requests_pb2_grpc.add_RequestLogServiceServicer_to_server(self.requests, server)
        return server

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def channel(self, identity: Identity, service: str = "auth") -> grpc.Channel:
        channel = sync_channel(self.address, identity, service)
        self._channels.append(channel)
        return channel

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self.server.stop(0).wait(5)


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    """The installation's own, a `stranger` without any right, and `billing`, which may record usage."""
    made = make_identities(tmp_path_factory.mktemp("pki"), "auth", "admin", "proxy", "operator", "stranger")
    billing = issue(
        authority() / "ca",
        "billing",
        tmp_path_factory.mktemp("billing"),
        rpcs=["RecordUsage", "ListModels"],
        rights=["record_unadmitted"],
    )
    return {**made, "billing": billing}


@pytest.fixture
def loopback(identities: dict[str, Identity]) -> Iterator[Loopback]:
    running = Loopback(identities["auth"])
    yield running
    running.close()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is true, 10 s at the most."""

    def wait(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not true():
            assert time.monotonic() < deadline, "waited 10 s in vain"
            time.sleep(0.01)

    return wait


Load = Callable[..., Settings]
Faults = Callable[..., list[str]]

PROVIDER = """
[[providers]]
name = "local"
kind = "openai-compatible"
base_url = "http://127.0.0.1:11434/v1"
models = ["llama-*"]
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Settings from the text of a gateway.toml and variables, given without their GATEWAY_."""

    def from_text(config: str = "", **variables: str) -> Settings:
        file = tmp_path / "gateway.toml"
        file.write_text(config)
        return load_settings({"GATEWAY_CONFIG": str(file), **{f"GATEWAY_{name}": value for name, value in variables.items()}})

    return from_text


@pytest.fixture
def faults(load: Load, tmp_path: Path) -> Faults:
    """The faults of such settings, with the file's path shortened."""

    def of(config: str = "", **variables: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            load(config, **variables)
        assert str(caught.value) == "\n".join(caught.value.faults)
        return [fault.replace(str(tmp_path / "gateway.toml"), "gateway.toml") for fault in caught.value.faults]

    return of
