"""Stopping in order, with real signals and a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.process.lifecycle import Signals, install_signals, serve_until_signal, stop_when_told
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity
from gateway.rpc.server import Server, bind
from gateway.stubs.auth.v1 import auth_pb2, auth_pb2_grpc
from tests.gateway.conftest import Loopback

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Service:
    """A server that waits in `serve_until_signal`, as others see it."""

    loopback: Loopback
    server: Server
    address: str
    channel: grpc.Channel
    ready: bool = True
    entered: threading.Event = field(default_factory=threading.Event)
    leave: threading.Event = field(default_factory=threading.Event)
    signals: int = 0

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.signals += 1
        os.kill(os.getpid(), number)

    def beat(self, request: Any, context: Any) -> None:
        if request.host == "slow":
            self.entered.set()
            self.leave.wait(10)

    def call(self, host: str = "", timeout: float = 10) -> Any:
        return auth_pb2_grpc.AuthServiceStub(self.channel).Beat.future(auth_pb2.BeatRequest(host=host), timeout=timeout)

    def health(self) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True).status
        return status

    def wait_for_health(self, status: int) -> None:
        deadline = time.monotonic() + 10
        while self.health() != status:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def run(self, what: Callable[[], None], *, lame_duck: float = 0.0, drain: float = 30.0) -> tuple[bool, float]:
        """Serves in this thread, where signals arrive, and does `what` in another. Gives the answer and when it came."""

        def act() -> None:
            try:
                self.wait_for_health(SERVING)
                what()
            finally:
                self.leave.set()
                if self.signals == 0:  # `what` failed before it sent one
                    self.signal()

        with ThreadPoolExecutor(1) as pool:
            acting = pool.submit(act)
            finished = serve_until_signal(self.server, lame_duck=lame_duck, drain=drain, ready=lambda: self.ready)
            ended = time.monotonic()
            acting.result(20)
        return finished, ended


@pytest.fixture
def service(identities: dict[str, Identity]) -> Iterator[Service]:
    loopback = Loopback(identities["auth"])
    server = loopback.make()
    port = bind(server, "127.0.0.1:0", identities["auth"])
    address = f"127.0.0.1:{port}"
    with sync_channel(address, identities["proxy"], "auth") as channel:
        made = Service(loopback, server, address, channel)
        loopback.auth.beat = made.beat
        yield made
        made.leave.set()
    loopback.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_service_ends_at_once(service: Service, number: int) -> None:
    sent = 0.0

    def what() -> None:
        nonlocal sent
        sent = time.monotonic()
        service.signal(number)

    finished, ended = service.run(what)
    assert finished
    assert ended - sent < 2


def test_health_says_not_serving_before_calls_are_refused(service: Service) -> None:
    def what() -> None:
        service.signal()
        service.wait_for_health(NOT_SERVING)
        assert not service.server.serving
        service.call().result(5)  # the lame-duck pause: still taken
        service.signal()

    finished, _ = service.run(what, lame_duck=30)
    assert not finished


def test_running_calls_finish_and_the_end_comes_with_the_last(service: Service) -> None:
    left = 0.0

    def what() -> None:
        nonlocal left
        call = service.call("slow")
        assert service.entered.wait(5)
        service.signal()
        deadline = time.monotonic() + 10
        while True:  # until the listener is closed
            with sync_channel(service.address, service.loopback.identity, "auth") as other:
                try:
                    health_pb2_grpc.HealthStub(other).Check(health_pb2.HealthCheckRequest(), timeout=1)
                except grpc.RpcError:
                    break
            assert time.monotonic() < deadline
        assert not call.done()
        left = time.monotonic()
        service.leave.set()
        assert call.result(5) == auth_pb2.BeatResponse()

    finished, ended = service.run(what)
    assert finished
    assert ended - left < 2


def test_the_end_of_the_drain_cuts_what_still_runs(service: Service) -> None:
    call: Any = None

    def what() -> None:
        nonlocal call
        call = service.call("slow")
        assert service.entered.wait(5)
        service.signal()
        with pytest.raises(grpc.RpcError):
            call.result(10)

    finished, _ = service.run(what, drain=0.3)
    assert not finished


def test_a_second_signal_cuts_at_once(service: Service) -> None:
    again = 0.0

    def what() -> None:
        nonlocal again
        call = service.call("slow")
        assert service.entered.wait(5)
        service.signal()
        service.wait_for_health(NOT_SERVING)
        again = time.monotonic()
        service.signal()
        with pytest.raises(grpc.RpcError):
            call.result(10)

    finished, ended = service.run(what, lame_duck=60, drain=60)
    assert not finished
    assert ended - again < 4


def test_health_follows_readiness(service: Service) -> None:
    def what() -> None:
        service.ready = False
        service.wait_for_health(NOT_SERVING)
        service.ready = True
        service.wait_for_health(SERVING)
        service.signal()

    assert service.run(what)[0]


def test_a_readiness_that_fails_is_no_readiness(identities: dict[str, Identity], logs_as_before: None) -> None:
    loopback = Loopback(identities["auth"])
    server = loopback.make()
    asked = threading.Event()

    def ready() -> bool:
        asked.set()
        raise OSError("no database")

    def act() -> None:
        asked.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=act)
    thread.start()
    assert serve_until_signal(server, lame_duck=0, drain=1, ready=ready)
    thread.join()
    loopback.close()


def test_the_systems_own_handlers_are_back_afterwards(service: Service) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    service.run(service.signal)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


class Steps:
    """The parts of an asyncio service, and the order in which they were asked to end."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.idle = asyncio.Event()
        self.draining = asyncio.Event()
        self.told = asyncio.Event()

    def not_ready(self) -> None:
        self.seen.append("not ready")
        self.told.set()

    async def close(self) -> None:
        self.seen.append("closed")

    async def wait_idle(self) -> None:
        self.draining.set()
        await self.idle.wait()
        self.seen.append("idle")

    async def stop(self, signals: Signals, *, lame_duck: float = 0.0, drain: float = 30.0) -> bool:
        return await stop_when_told(
            signals,
            lame_duck=lame_duck,
            drain=drain,
            not_ready=self.not_ready,
            close=self.close,
            idle=self.wait_idle,
        )


@pytest.fixture
async def signals() -> Any:
    installed = install_signals(asyncio.get_running_loop())
    yield installed
    installed.close()


async def test_an_asyncio_service_ends_as_soon_as_it_is_idle(signals: Signals) -> None:
    steps = Steps()
    stopping = asyncio.create_task(steps.stop(signals))
    os.kill(os.getpid(), signal.SIGTERM)
    await steps.draining.wait()
    assert not stopping.done()
    steps.idle.set()
    assert await stopping is True
    assert steps.seen == ["not ready", "closed", "idle"]


async def test_the_listener_stays_open_through_the_lame_duck_pause(signals: Signals) -> None:
    steps = Steps()
    steps.idle.set()
    started = time.monotonic()
    stopping = asyncio.create_task(steps.stop(signals, lame_duck=0.3))
    os.kill(os.getpid(), signal.SIGINT)
    await steps.told.wait()
    assert steps.seen == ["not ready"]
    assert await stopping is True
    assert time.monotonic() - started >= 0.3


async def test_a_second_signal_cuts_the_drain(signals: Signals) -> None:
    steps = Steps()
    stopping = asyncio.create_task(steps.stop(signals, drain=60))
    os.kill(os.getpid(), signal.SIGTERM)
    await steps.draining.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await stopping is False
    assert steps.seen == ["not ready", "closed"]


async def test_a_second_signal_cuts_the_lame_duck_pause_too(signals: Signals) -> None:
    steps = Steps()
    stopping = asyncio.create_task(steps.stop(signals, lame_duck=60))
    os.kill(os.getpid(), signal.SIGTERM)
    await signals.stop.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await stopping is False
    assert steps.seen == ["not ready", "closed"]


async def test_the_drain_has_an_end(signals: Signals) -> None:
    steps = Steps()
    stopping = asyncio.create_task(steps.stop(signals, drain=0.1))
    os.kill(os.getpid(), signal.SIGTERM)
    assert await stopping is False
