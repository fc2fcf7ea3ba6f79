"""Channels: back soon after an outage, quiet for long, and never by way of a proxy of the environment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc
import grpc.aio
import pytest

from gateway.rpc import channel as channels
from gateway.rpc import server as servers
from gateway.rpc.channel import aio_channel, sync_channel
from gateway.rpc.identity import Identity
from gateway.rpc.server import bind
from gateway.stubs.auth.v1 import auth_pb2, auth_pb2_grpc
from tests.gateway.conftest import Loopback

OUTAGE = 3.0
"""Seconds; long enough for gRPC's own pause between tries to have grown beyond what is asked here."""


def test_a_call_succeeds_within_two_seconds_after_an_outage(loopback: Loopback, identities: dict[str, Identity]) -> None:
    stub = auth_pb2_grpc.AuthServiceStub(loopback.channel(identities["proxy"]))
    stub.Beat(auth_pb2.BeatRequest(), timeout=5)
    loopback.server.stop(0).wait(5)
    down_until = time.monotonic() + OUTAGE
    while time.monotonic() < down_until:
        with pytest.raises(grpc.RpcError):
            stub.Beat(auth_pb2.BeatRequest(), timeout=1)
        time.sleep(0.05)
    loopback.server = loopback.make()
    bind(loopback.server, loopback.address, loopback.identity)
    loopback.server.start()
    back = time.monotonic()
    while True:
        try:
            stub.Beat(auth_pb2.BeatRequest(), timeout=1)
            break
        except grpc.RpcError:
            assert time.monotonic() - back < 2, "no answer within 2 s"
            time.sleep(0.02)


async def test_an_asyncio_channel_comes_back_too(loopback: Loopback, identities: dict[str, Identity]) -> None:
    async with aio_channel(loopback.address, identities["proxy"], "auth") as channel:
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        await stub.Beat(auth_pb2.BeatRequest(), timeout=5)
        loopback.server.stop(0).wait(5)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Beat(auth_pb2.BeatRequest(), timeout=1)
        loopback.server = loopback.make()
        bind(loopback.server, loopback.address, loopback.identity)
        loopback.server.start()
        async with asyncio.timeout(2):
            await stub.Beat(auth_pb2.BeatRequest(), timeout=2, wait_for_ready=True)


def test_a_quiet_channel_is_kept_by_the_server(
    identities: dict[str, Identity], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ten times as many pings as our channels send: a server that counted them would say GOAWAY at the third."""
    options = dict(channels.OPTIONS) | {"grpc.keepalive_time_ms": channels.KEEPALIVE_MS // 10}
    monkeypatch.setattr(channels, "OPTIONS", tuple(options.items()))
    running = Loopback(identities["auth"])
    try:
        channel = running.channel(identities["proxy"])
        changes: list[grpc.ChannelConnectivity] = []
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        stub.Beat(auth_pb2.BeatRequest(), timeout=5)
        channel.subscribe(changes.append)
        time.sleep(4.5)  # four pings; there is no event for a GOAWAY that does not come
        assert set(changes) <= {grpc.ChannelConnectivity.READY}
        assert "too_many_pings" not in capfd.readouterr().err
    finally:
        running.close()


def test_no_call_fails_when_a_connection_grows_old(identities: dict[str, Identity], monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers end connections after a while, so that their clients look for new replicas."""
    options = dict(servers.OPTIONS) | {"grpc.max_connection_age_ms": 100}
    monkeypatch.setattr(servers, "OPTIONS", tuple(options.items()))
    running = Loopback(identities["auth"])
    try:
        stub = auth_pb2_grpc.AuthServiceStub(running.channel(identities["proxy"]))
        peers = set()
        running.auth.beat = lambda request, context: peers.add(context.peer())
        until = time.monotonic() + 2
        while time.monotonic() < until:
            stub.Beat(auth_pb2.BeatRequest(), timeout=5)
        assert len(peers) > 3
    finally:
        running.close()


def test_all_addresses_of_a_name_are_used(loopback: Loopback, identities: dict[str, Identity]) -> None:
    with sync_channel(f"dns:///localhost:{loopback.port}", identities["proxy"], "auth") as channel:
        auth_pb2_grpc.AuthServiceStub(channel).Beat(auth_pb2.BeatRequest(), timeout=5)


def test_proxies_of_the_environment_are_not_used(
    loopback: Loopback, identities: dict[str, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with sync_channel(f"localhost:{loopback.port}", identities["proxy"], "auth") as channel:
        auth_pb2_grpc.AuthServiceStub(channel).Beat(auth_pb2.BeatRequest(), timeout=5)


def test_no_pause_between_tries_is_longer_than_a_second() -> None:
    options = dict(channels.OPTIONS)
    for name in ("min_reconnect_backoff_ms", "initial_reconnect_backoff_ms", "max_reconnect_backoff_ms"):
        assert int(options[f"grpc.{name}"]) <= 1_000


def test_several_addresses_are_all_used(loopback: Loopback, identities: dict[str, Identity]) -> None:
    other = Loopback(identities["auth"])
    asked: list[str] = []
    loopback.auth.beat = lambda request, context: asked.append("first")
    other.auth.beat = lambda request, context: asked.append("second")
    try:
        with sync_channel(f"{loopback.address},{other.address}", identities["proxy"], "auth") as channel:
            stub = auth_pb2_grpc.AuthServiceStub(channel)

            def asks_both() -> bool:
                stub.Beat(auth_pb2.BeatRequest(), timeout=5, wait_for_ready=True)
                return set(asked) == {"first", "second"}

            _until(asks_both)
    finally:
        other.close()


def _until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not check():
        assert time.monotonic() < deadline
