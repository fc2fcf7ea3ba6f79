"""An auth client with its outbox on one side, a behaving auth service on the other, mutual TLS between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from gateway.ids import uuid7
from gateway.rpc.channel import aio_channel
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.auth_client import AuthClient
from services.proxy.metrics import BatchMetrics
from services.proxy.outbox import Outbox, token_key
from services.proxy.replicas import Replicas
from tests.fakes.auth_service import TOKEN, FakeAuthServer, FakeAuthService, Ledger
from tests.support.certificates import make_identities

KEY = token_key(TOKEN)


@dataclass
class Harness:
    client: AuthClient
    outbox: Outbox
    service: FakeAuthService
    server: FakeAuthServer
    registry: CollectorRegistry
    directory: Path

    @property
    def ledger(self) -> Ledger:
        return self.service.ledger

    async def validate(self, request: pb.ValidateTokenRequest) -> pb.Grant:
        return await self.client.validate(request, arrived=now())

    def metric(self, name: str) -> float:
        return self.registry.get_sample_value(name) or 0.0


def now() -> float:
    return asyncio.get_running_loop().time()


def call(token: str = TOKEN, *, held: int = 10, request_id: str | None = None) -> pb.ValidateTokenRequest:
    return pb.ValidateTokenRequest(
        token=token,
        request_id=uuid7() if request_id is None else request_id,
        endpoint="/v1/chat/completions",
        dialect="openai",
        request_model="gpt-4o-mini",
        candidates=[pb.Candidate(provider="demo", model="gpt-4o-mini")],
        input_token_ceiling=held,
        max_output_tokens=0,
    )


def settled(request_id: str, output: int = 3, **fields: object) -> pb.RecordUsageRequest:
    return pb.RecordUsageRequest(
        request_id=request_id,
        outcome=pb.OUTCOME_SETTLED,
        usage=[pb.UsageItem(unit="input", count=1), pb.UsageItem(unit="output", count=output)],
        source=pb.USAGE_SOURCE_PROVIDER,
        status=200,
        **fields,
    )


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Returns as soon as the condition holds; fails when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it asks for happens on the threads of a server
            await asyncio.sleep(0.01)


@asynccontextmanager
async def client_of(
    directory: Path, pki: Path, *, service: FakeAuthService | None = None, up: bool = True, **options: int
) -> AsyncIterator[Harness]:
    """A client that talks to a fake auth; `up`: whether that one is there from the start."""
    identities = make_identities(pki, "auth", "proxy")
    server = FakeAuthServer(service or FakeAuthService(), identities["auth"])
    server.start()
    if not up:
        server.stop()
    registry = CollectorRegistry()
    proxy_id = uuid7()
    replicas = Replicas(server.address, lambda address: aio_channel(address, identities["proxy"], "auth"))
    outbox = Outbox.open(directory, proxy_id=proxy_id, registry=registry, **options)
    client = AuthClient(
        replicas=replicas,
        outbox=outbox,
        proxy_id=proxy_id,
        host="here",
        routing=pb.Routing(),
        metrics=BatchMetrics(CollectorRegistry()),
    )
    await client.start()
    try:
        yield Harness(client, outbox, server.service, server, registry, directory)
    finally:
        await client.close()
        await outbox.close(0.0)
        await replicas.close()
        server.stop()
