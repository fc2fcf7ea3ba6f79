"""The edge on loopback between a caller, a scripted provider, and fakes of auth and outbox that behave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway.errors import (
    AuthUnavailable,
    GatewayError,
    ModelNotAllowed,
    OutboxUnavailable,
    TokenDisabled,
    TokenUnknown,
    UnboundedRequest,
)
from gateway.patterns import matches
from gateway.pricing import Rates, cost_nanos
from gateway.process.settings import Settings
from gateway.process.settings_tables import ModelSettings, ProviderSettings
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.app import App, make_app
from services.proxy.metrics import EdgeMetrics
from services.proxy.ports import Ports
from services.proxy.providers.registry import build_registry
from services.proxy.reading import Reader
from services.proxy.relay import Relay
from services.proxy.server import EdgeServer
from services.proxy.upstream_http import HttpUpstream
from tests.fakes.provider import Provider

TOKEN = "sk-test-token-of-the-tests"
KEY = "sk-Qm7Zx2Lp9Vt4Hn6Rk8Wd3Yc5Fb1Js0Ga"
RATES = '{"input":"1","output":"2"}'


@dataclass
class Token:
    """A client token at the fake auth."""

    models: tuple[str, ...] = ()
    enabled: bool = True
    soft: bool = False


class FakeAuth:
    """Judges tokens and models, remembers what it admitted.

    `limit`: the output limit that every grant carries. `asked`: how often it was asked anything.
    """

    def __init__(self) -> None:
        self.tokens = {TOKEN: Token()}
        self.asked = 0
        self.admitted: dict[str, pb.ValidateTokenRequest] = {}
        self.abandoned: list[str] = []
        self.looks: list[pb.ValidateTokenRequest] = []
        self.limit: int | None = None
        self.hold = 1_000_000_000
        self.hidden: set[str] = set()  # names of models that no token may use
        self.ready = True
        self.away = False
        self.hold_answers: asyncio.Event | None = None
        self.refusal: GatewayError | None = None
        self.rate_limits: list[pb.RateLimit] = []
        self.books = pb.GetTokenUsageResponse()

    async def validate(self, request: pb.ValidateTokenRequest, *, arrived: float) -> pb.Grant:
        self.asked += 1
        if self.hold_answers is not None:
            try:
                await self.hold_answers.wait()
            except asyncio.CancelledError:
                self.abandoned.append(request.request_id)  # the real one withdraws it through the outbox
                raise
        if self.away:
            raise AuthUnavailable("The auth service did not answer in time.", retry_after=1.0)
        token = self.tokens.get(request.token)
        if token is None:
            raise TokenUnknown("unknown")
        if not token.enabled:
            raise TokenDisabled("This token is switched off.")
        if request.request_model and not matches(request.request_model, token.models):
            raise ModelNotAllowed("This token is not for this model.")
        if request.unbounded_features and not token.soft:
            raise UnboundedRequest("This request has no upper bound: " + ", ".join(request.unbounded_features))
        if not request.request_id:
            self.looks.append(request)
            return pb.Grant(token_id=7)
        if self.refusal is not None:
            raise self.refusal
        self.admitted[request.request_id] = request
        prices = [
            pb.CandidatePrice(provider=c.provider, model=c.model, price_id=1, rates_json=RATES) for c in request.candidates
        ]
        return pb.Grant(
            token_id=7, max_output_tokens=self.limit, held_nanos=self.hold, prices=prices, rate_limits=self.rate_limits
        )

    async def token_usage(self, token: str, client_ip: str, details: bool) -> pb.GetTokenUsageResponse:
        self.asked += 1
        if token not in self.tokens:
            raise TokenUnknown("unknown")
        books = pb.GetTokenUsageResponse(
            token_id=7, status="active", prompt_tokens=3, completion_tokens=4, total_tokens=7, amount_spent_nanos=12_500_000_000
        )
        books.MergeFrom(self.books)
        return books

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        self.asked += 1
        if request.token not in self.tokens:
            raise TokenUnknown("unknown")
        names = [pb.Model(name=name, provider="gateway") for name in request.names]
        served = [
            pb.Model(name=pattern, provider=provider.provider)
            for provider in request.providers
            for pattern in provider.patterns
            if "*" not in pattern
        ]
        usable = [model for model in (*names, *served) if model.name not in self.hidden]
        return pb.ListModelsResponse(models=sorted(usable, key=lambda model: model.name))


class FakeOutbox:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.settlements: list[pb.RecordUsageRequest] = []
        self.noted: list[pb.RecordUsageRequest] = []
        self.writable = True
        self.appended = asyncio.Event()
        self.on_append: Callable[[pb.RecordUsageRequest], None] = lambda settlement: None

    def opened(self, request_id: str, token_key: bytes) -> None:
        if not self.writable:
            raise OutboxUnavailable("usage cannot be written down", retry_after=1.0)
        self.calls.append(request_id)

    def progress(self, request_id: str, usage: pb.RecordUsageRequest) -> None:
        self.noted.append(usage)

    def append(self, settlement: pb.RecordUsageRequest, token_key: bytes) -> None:
        assert len(token_key) == 16
        self.settlements.append(settlement)
        self.appended.set()
        self.on_append(settlement)

    async def kept(self, request_id: str) -> None:
        assert self.of(request_id), "it is kept before it ended"

    def of(self, request_id: str) -> list[pb.RecordUsageRequest]:
        return [settlement for settlement in self.settlements if settlement.request_id == request_id]


class NoAdmin:
    """Stands where the admin routes are."""

    async def handle(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        return web.json_response({"admin": request.raw_path, "scheme": request.scheme, "address": request.remote})


@dataclass
class Edge:
    """The running edge."""

    app: App
    server: EdgeServer
    auth: FakeAuth
    outbox: FakeOutbox
    provider: Provider
    url: str
    port: int
    session: aiohttp.ClientSession
    admin_port: int | None = None
    extra: dict[str, object] = field(default_factory=dict)

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}", **more}

    def post(self, body: object, *, raw: bytes | None = None, **headers: str) -> aiohttp.client._RequestContextManager:
        data = raw if raw is not None else json.dumps(body).encode()
        return self.session.post(f"{self.url}/v1/chat/completions", data=data, headers=self.headers(**headers))

    def get(self, path: str, **headers: str) -> aiohttp.client._RequestContextManager:
        return self.session.get(self.url + path, headers=self.headers(**headers))

    async def raw(self, data: bytes, *, until: float = 3.0) -> bytes:
        """Sends bytes over a connection of its own and gives all that comes back until the edge closes, or the time is over."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        answer = b""
        try:
            writer.write(data)
            async with asyncio.timeout(until):
                while part := await reader.read(65536):
                    answer += part
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        return answer

    async def settled(self, count: int = 1) -> pb.RecordUsageRequest:
        """Waits until there are so many settlements; gives the last."""
        async with asyncio.timeout(5):
            while len(self.outbox.settlements) < count:
                self.outbox.appended.clear()
                await self.outbox.appended.wait()
        assert len(self.outbox.settlements) == count
        return self.outbox.settlements[-1]


async def until(claim: Callable[[], bool], seconds: float = 3.0) -> None:
    """Waits until something holds that no event tells of."""
    async with asyncio.timeout(seconds):
        while not claim():  # noqa: ASYNC110 - the scripted provider notes facts, it sends no events
            await asyncio.sleep(0.005)


def chat(model: str = "mock", prompt: str = "Hello there", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}


def items(settlement: pb.RecordUsageRequest) -> dict[str, int]:
    return {item.unit: item.count for item in settlement.usage}


def cost(settlement: pb.RecordUsageRequest) -> int:
    return cost_nanos(items(settlement), Rates.from_json(RATES))


def head(method: str, target: str, *headers: str) -> bytes:
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", "Host: edge", f"Authorization: Bearer {TOKEN}", *headers, "", ""]
    ).encode()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def body_of(answer: bytes) -> dict[str, dict[str, str]]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@asynccontextmanager
async def running_edge(
    *,
    providers: list[ProviderSettings] | None = None,
    models: tuple[ModelSettings, ...] = (),
    connections: int = 1000,
    tmp_path: Path = Path(),
    upstream_timeouts: tuple[float, float, float] = (1.0, 2.0, 1.0),
    upstream_total: float = 60.0,
    **settings: object,
) -> AsyncIterator[Edge]:
    """The edge with one openai-compatible provider `mock`, behind it the scripted one."""
    async with Provider() as provider:
        if providers is None:
            providers = [
                ProviderSettings(
                    name="mock",
                    kind="openai-compatible",
                    base_url=provider.base_url,
                    api_keys=(KEY,),
                    models=["mock*", "gpt-*"],
                )
            ]
        built = Settings(**{"data_dir": str(tmp_path), "http_port": 0, "max_connections": connections, **settings})  # type: ignore[arg-type]
        clock = asyncio.get_running_loop().time
        auth, outbox = FakeAuth(), FakeOutbox()
        connect, first_byte, idle = upstream_timeouts
        upstream = HttpUpstream(connect=connect, first_byte=first_byte, idle=idle, total=upstream_total, allowed={})
        await upstream.start()
        relay, reader = Relay(on_hangup=built.on_hangup), Reader()
        app = make_app(
            built,
            auth=auth,
            outbox=outbox,
            registry=build_registry(providers, models, environ={}, clock=clock),
            upstream=upstream,
            admin=NoAdmin(),
            relay=relay,
            reader=reader,
            metrics=EdgeMetrics(CollectorRegistry()),
        )
        ports = Ports(app, built, grace=0.2)
        await ports.open()
        url = f"{'https' if built.tls_cert else 'http'}://127.0.0.1:{ports.port}"
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            try:
                yield Edge(app, ports.edge, auth, outbox, provider, url, ports.port, session, admin_port=ports.admin_port)
            finally:
                await relay.close(1.0)
                await ports.close()
                await ports.end()
                await upstream.close()
                await reader.close()
