"""Several auth servers behind one address: one that is gone, hangs or is about to stop costs no call anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry

from gateway.errors import AuthUnavailable, BudgetReserved
from gateway.ids import uuid7
from gateway.rpc.channel import aio_channel
from gateway.rpc.identity import Identity
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy import replicas as module
from services.proxy.auth_client import AuthClient
from services.proxy.metrics import BatchMetrics
from services.proxy.outbox import Outbox
from services.proxy.replicas import Replicas
from tests.fakes.auth_service import TOKEN, FakeAuthServer, FakeAuthService, Ledger, Token
from tests.proxy.auth_harness import KEY, call, eventually, now, settled
from tests.support.certificates import make_identities


@dataclass
class Pair:
    """Two servers over the same books, and a client of both."""

    servers: list[FakeAuthServer]
    ledger: Ledger
    replicas: Replicas
    client: AuthClient
    outbox: Outbox
    waits: list[float] = field(default_factory=list)

    async def one(self) -> str:
        """A call that is settled if it was granted; what became of it."""
        request, started = call(), now()
        try:
            await self.client.validate(request, arrived=started)
        except AuthUnavailable:
            return "503"
        finally:
            self.waits.append(now() - started)
        self.outbox.append(settled(request.request_id), KEY)
        return "granted"

    async def load(self, seconds: float) -> list[str]:
        """100 calls a second."""
        async with asyncio.TaskGroup() as group:
            tasks = []
            for _ in range(int(seconds * 100)):
                tasks.append(group.create_task(self.one()))
                await asyncio.sleep(0.01)
        return [task.result() for task in tasks]

    async def settle(self) -> None:
        await eventually(lambda: not self.outbox._pending)
        await eventually(lambda: self.ledger.tokens[TOKEN].held == 0)
        assert self.ledger.conflicts == 0

    def asked(self) -> list[int]:
        """How many batches of validations each has had."""
        return [sum(validations > 0 for _, validations in server.service.batches) for server in self.servers]


@asynccontextmanager
async def pair_of(
    directory: Path, *, token: Token | None = None, address: str = "", connection_age_ms: int | None = None
) -> AsyncIterator[Pair]:
    identities = make_identities(directory / "pki", "auth", "proxy")
    ledger = Ledger(tokens={TOKEN: token or Token()})
    servers = [
        FakeAuthServer(FakeAuthService(ledger), identities["auth"], connection_age_ms=connection_age_ms) for _ in range(2)
    ]
    servers[1].service._lock = servers[0].service._lock  # one database
    for server in servers:
        server.start()
    replicas = _replicas(address or ",".join(server.address for server in servers), identities["proxy"])
    proxy_id = uuid7()
    outbox = Outbox.open(directory / "outbox", proxy_id=proxy_id, registry=CollectorRegistry())
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
        if not address:
            await eventually(lambda: all(replica.good for replica in replicas._replicas.values()))
        yield Pair(servers, ledger, replicas, client, outbox)
    finally:
        await client.close()
        await outbox.close(0.0)
        await replicas.close()
        for server in servers:
            server.stop()


def _replicas(address: str, identity: Identity) -> Replicas:
    return Replicas(address, lambda one: aio_channel(one, identity, "auth"))


async def test_both_are_asked_in_turns(tmp_path):
    async with pair_of(tmp_path) as pair:
        assert set(await pair.load(2 * module.TURN)) == {"granted"}
        assert min(pair.asked()) >= 10


async def test_what_is_asked_at_one_time_goes_to_one_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TURN", 60.0)
    async with pair_of(tmp_path) as pair:
        for server in pair.servers:
            server.service.item_seconds = 0.0005  # so that two batches are on their way at once
        assert set(await asyncio.gather(*(pair.one() for _ in range(150)))) == {"granted"}
        assert min(pair.asked()) == 0


async def test_one_that_dies_and_comes_back_again_and_again_costs_no_call(tmp_path):
    async with pair_of(tmp_path) as pair:

        async def nemesis() -> None:
            for turn in range(4):
                await asyncio.sleep(0.3)
                victim = pair.servers[turn % 2]
                await asyncio.to_thread(victim.stop)
                await asyncio.sleep(0.1)
                victim.start()
                address = f"ipv4:{victim.address}"
                await eventually(lambda: pair.replicas._replicas[address].connected)  # noqa: B023 - awaited in the loop

        told, _ = await asyncio.gather(pair.load(2.5), nemesis())
        assert set(told) == {"granted"}
        assert max(pair.waits) < 0.9
        await pair.settle()
        assert pair.ledger.tokens[TOKEN].spent == 4 * len(told)


async def test_connections_that_their_servers_end_all_the_time_cost_no_call(tmp_path):
    async with pair_of(tmp_path, connection_age_ms=100) as pair:
        assert set(await pair.load(1.5)) == {"granted"}
        assert max(pair.waits) < 0.9
        await pair.settle()


async def test_one_that_hangs_costs_no_call_and_is_asked_again_when_it_goes_on(tmp_path):
    async with pair_of(tmp_path) as pair:
        hanging = pair.servers[0].service
        hanging.flowing.clear()
        assert set(await pair.load(2.0)) == {"granted"}
        assert max(pair.waits) < 0.6
        assert pair.client.ready
        before = len(hanging.batches)
        hanging.flowing.set()
        await eventually(lambda: all(replica.answering for replica in pair.replicas._replicas.values()))
        assert set(await pair.load(0.5)) == {"granted"}
        assert len(hanging.batches) > before
        await pair.settle()


async def test_where_all_are_slow_they_are_not_asked_twice_for_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LATE", 0.02)
    async with pair_of(tmp_path) as pair:
        for server in pair.servers:
            server.service.item_seconds = 0.001
        told = await asyncio.gather(*(pair.one() for _ in range(256)))
        sent = sum(validations for server in pair.servers for _, validations in server.service.batches)
        assert set(told) == {"granted"}
        assert sent <= len(told) + module.MOST_SECONDS * 64
        for server in pair.servers:
            server.service.item_seconds = 0.0
        await pair.settle()


async def test_one_that_is_about_to_stop_is_asked_no_more_but_where_it_is_the_only_one(tmp_path):
    async with pair_of(tmp_path) as pair:
        first, second = (pair.replicas._replicas[f"ipv4:{server.address}"] for server in pair.servers)
        pair.servers[0].health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await eventually(lambda: not first.serving)
        before = pair.asked()
        assert set(await pair.load(0.3)) == {"granted"}
        assert pair.asked()[0] == before[0]
        pair.servers[1].stop()
        await eventually(lambda: not second.connected)
        assert set(await pair.load(0.3)) == {"granted"}
        assert pair.client.ready


async def test_a_refusal_of_one_is_made_good_for_what_the_late_one_still_admits(tmp_path):
    async with pair_of(tmp_path, token=Token(budget=10)) as pair:
        slow, quick = pair.servers[0].service, pair.servers[1].service
        pair.ledger.tokens[TOKEN].held = 10
        slow.flowing.clear()
        request = call()
        pair.replicas._current, pair.replicas._turn_ends = pair.replicas._replicas[f"ipv4:{pair.servers[0].address}"], now() + 9
        with pytest.raises(BudgetReserved):
            await pair.client.validate(request, arrived=now())
        assert pair.asked() == [0, 1]
        assert quick.batches
        pair.ledger.tokens[TOKEN].held = 0  # money comes back, and the late one would admit the call now
        await eventually(lambda: pair.ledger.state(request.request_id) == "withdrawn")
        slow.flowing.set()
        await pair.settle()


async def test_both_away_is_told_after_a_second_and_the_first_one_back_is_found(tmp_path):
    async with pair_of(tmp_path) as pair:
        for server in pair.servers:
            server.stop()
        assert await pair.one() == "503"
        assert pair.waits[-1] < 1.8
        assert not pair.client.ready
        pair.servers[1].start()
        back = now()
        await eventually(lambda: pair.client.ready, 2.0)
        assert await pair.one() == "granted"
        assert now() - back < 2.0


async def test_a_name_means_whatever_addresses_it_has_at_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RESOLVE_INTERVAL", 0.05)
    async with pair_of(tmp_path, address="dns:///localhost:1") as pair:
        first, second = (f"ipv4:{server.address}" for server in pair.servers)
        names: list[str] = [first]

        async def resolve() -> list[str]:
            return names

        monkeypatch.setattr(pair.replicas, "_resolve", resolve)
        await eventually(lambda: pair.client.ready)
        assert await pair.one() == "granted"
        names = [first, second]
        await eventually(lambda: second in pair.replicas._replicas)
        await eventually(lambda: pair.replicas._replicas[second].good)
        names = [second]
        told = asyncio.create_task(pair.load(0.5))
        await eventually(lambda: first not in pair.replicas._replicas)
        assert set(await told) == {"granted"}
        names = []  # a name that cannot be looked up takes nobody away
        await asyncio.sleep(0.1)
        assert await pair.one() == "granted"


async def test_who_is_no_longer_named_stays_while_nobody_can_take_his_place(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RESOLVE_INTERVAL", 0.05)
    async with pair_of(tmp_path) as pair:
        second = f"ipv4:{pair.servers[1].address}"
        pair.servers[1].stop()
        await eventually(lambda: not pair.replicas._replicas[second].connected)
        pair.replicas._take([second])
        assert await pair.one() == "granted"
        pair.servers[1].start()
        await eventually(lambda: pair.replicas._replicas[second].good)
        pair.replicas._take([second])
        assert set(pair.replicas._replicas) == {second}
        assert await pair.one() == "granted"


def test_addresses_are_dialled_as_grpc_takes_them():
    made: list[str] = []

    async def run() -> None:
        replicas = Replicas("[::1]:5001,127.0.0.1:5002", lambda one: made.append(one) or _Idle())
        await replicas.start()
        await replicas.close()

    asyncio.run(run())
    assert made == ["ipv6:[::1]:5001", "ipv4:127.0.0.1:5002"]


class _Idle:
    """A channel that never connects."""

    def get_state(self, try_to_connect: bool) -> None:
        return None

    async def wait_for_state_change(self, state: None) -> None:
        await asyncio.Event().wait()

    def unary_stream(self, *arguments: object, **named: object) -> None:
        return None

    async def close(self, grace: float) -> None:
        pass

    def unary_unary(self, *arguments: object, **named: object) -> None:
        return None
