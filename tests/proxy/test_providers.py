"""Providers: who serves which model, which key's turn it is, what their errors mean, how far a call came."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr
from yarl import URL

from gateway.errors import UpstreamCredentials, UpstreamError
from gateway.process.settings_tables import ModelSettings, ProviderSettings
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.providers.base import Provider, ProviderRefused
from services.proxy.providers.keys import KeyMissing, KeyPool, resolve_keys
from services.proxy.providers.registry import Registry, allowed_hosts, build_registry
from services.proxy.unpacking import PIECE, Unpacker, UnpackError
from services.proxy.upstream import BrokenOff, NoStatus, NotSent, Sending
from services.proxy.upstream_http import HttpUpstream
from tests.proxy.edge_harness import KEY, chat, items, running_edge


class Clock:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def settings(name: str, models: list[str], kind: str = "openai-compatible") -> ProviderSettings:
    return ProviderSettings(name=name, kind=kind, base_url="http://127.0.0.1:9/v1", api_keys=(KEY,), models=models)


def registry(*providers: ProviderSettings, models: tuple[ModelSettings, ...] = ()) -> Registry:
    return build_registry(providers, models, environ={}, clock=Clock())


def names(found: Registry, model: str) -> list[str]:
    return [target.provider.name for target in found.route(model)]


# -- routing ------------------------------------------------------------------------------------------------------------------


def test_a_model_goes_to_those_whose_patterns_name_it_in_their_order() -> None:
    found = registry(settings("a", ["gpt-*"]), settings("b", ["gpt-4o", "llama/*"]))
    assert names(found, "gpt-4o") == ["a", "b"]
    assert names(found, "gpt-3") == ["a"]
    assert names(found, "llama/3:8b") == ["b"]
    assert names(found, "GPT-4o") == []
    assert names(found, "other") == []


def test_the_demo_provider_stands_in_only_where_nobody_else_serves_and_keeps_its_own_model() -> None:
    demo = settings("demo", ["demo", "gpt-*", "claude-*"], kind="demo")
    assert names(registry(demo), "gpt-4o") == ["demo"]
    found = registry(settings("real", ["gpt-4o", "*-mini"]), demo)
    assert names(found, "gpt-4o") == ["real"]
    assert names(found, "gpt-3.5") == ["demo"]
    assert names(found, "demo") == ["demo"]
    assert names(registry(settings("all", ["*"]), demo), "demo") == ["demo"]
    listed = {item.provider: list(item.patterns) for item in registry(settings("real", ["gpt-*"]), demo).models()}
    assert listed == {"real": ["gpt-*"], "demo": ["demo", "claude-*"]}


def test_an_alias_leads_to_its_targets_the_first_by_weight() -> None:
    alias = ModelSettings(
        name="fast",
        targets=[
            {"provider": "a", "model": "small", "weight": 3},
            {"provider": "b", "model": "tiny", "weight": 1},
        ],
    )
    built = registry(settings("a", ["x"]), settings("b", ["y"]), models=(alias,))
    drawn = iter([0.0, 2.9, 3.0, 3.9])
    found = Registry(built.providers, list(built._aliases.values()), choose=lambda total: next(drawn))
    firsts = [[(t.provider.name, t.model) for t in found.route("fast")] for _ in range(4)]
    assert firsts == [[("a", "small"), ("b", "tiny")]] * 2 + [[("b", "tiny"), ("a", "small")]] * 2


def test_a_provider_that_failed_five_times_comes_last_for_a_while() -> None:
    clock = Clock()
    found = build_registry([settings("a", ["m"]), settings("b", ["m"])], (), environ={}, clock=clock)
    first = found.providers[0]
    for _ in range(4):
        first.failed()
    assert names(found, "m") == ["a", "b"]
    first.failed()
    assert names(found, "m") == ["b", "a"]
    clock.now += 11
    assert names(found, "m") == ["a", "b"]
    first.failed()
    assert names(found, "m") == ["b", "a"]
    first.answered()
    assert names(found, "m") == ["a", "b"]


# -- keys ---------------------------------------------------------------------------------------------------------------------


def test_keys_come_from_the_environment_a_file_or_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    found = resolve_keys("p", ["env:MY_KEY", f"file:{tmp_path}/key", "literal"], {"MY_KEY": " from-env "})
    assert [key.get_secret_value() for key in found] == ["from-env", "from-file", "literal"]
    for missing in ("env:OTHER", f"file:{tmp_path}/other", "file:/"):
        with pytest.raises(KeyMissing, match="provider p"):
            resolve_keys("p", [missing], {})


def test_keys_take_turns_and_one_that_rests_is_left_out() -> None:
    clock = Clock()
    pool = KeyPool([SecretStr("one-key-1"), SecretStr("two-key-2"), SecretStr("tri-key-3")], clock=clock)

    def turn() -> str:
        key = pool.take()
        assert key is not None
        return key.authorization.removeprefix("Bearer ")[:3]

    assert [turn() for _ in range(4)] == ["one", "two", "tri", "one"]
    second = pool.take()
    pool.rest(second, 10)
    assert [turn() for _ in range(3)] == ["tri", "one", "tri"]
    for key in pool._keys:
        pool.rest(key, 20 if key is not second else 5)
    assert not pool.has_fresh()
    assert turn() == "two"
    clock.now += 21
    assert pool.has_fresh()
    assert KeyPool([], clock=clock).take() is None


def test_no_piece_of_a_key_stays_in_a_text() -> None:
    pool = KeyPool([SecretStr(KEY)], clock=Clock()).redactor
    assert pool.redact_text(f"Incorrect API key provided: {KEY[:9]}****{KEY[-4:]}") == (
        f"Incorrect API key provided: [redacted]****{KEY[-4:]}"
    )
    text = pool.redact_text(f"a {KEY} b {KEY[5:20]} c")
    assert text == "a [redacted] b [redacted] c"
    assert pool.redact(b"x" + KEY.encode() + b"y") == b"x[redacted]y"
    assert KeyPool([], clock=Clock()).redactor.redact_text("anything") == "anything"


# -- what errors mean ---------------------------------------------------------------------------------------------------------


def provider(clock: Callable[[], float] | None = None, keys: int = 1) -> Provider:
    return Provider(
        name="p",
        kind="openai",
        base_url="http://127.0.0.1:9/v1/",
        patterns=["*"],
        secrets=[SecretStr(f"{number}-{KEY}") for number in range(keys)],
        limit_parameter="max_tokens",
        clock=clock or Clock(),
    )


def test_the_address_is_the_base_url_and_the_route() -> None:
    assert str(provider().chat_url) == "http://127.0.0.1:9/v1/chat/completions"


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_is_the_gateways_fault_and_rests(status: int) -> None:
    one = provider()
    failure = one.classify(status, {}, b'{"error":{"message":"bad key"}}', one.keys.take())
    assert isinstance(failure.told, UpstreamCredentials)
    assert "bad key" not in failure.told.message
    assert not failure.again
    two = provider(keys=2)
    assert two.classify(status, {}, b"", two.keys.take()).again


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"x"}}', "too long"),
        (b'{"error":"too long"}', "too long"),
        (b'{"message":"too long"}', "too long"),
        (b'[{"error":{"message":"too long"}}]', "too long"),
        (b"<html>", "The provider p refused the request with status 400."),
        (b"\xff", "The provider p refused the request with status 400."),
        (b'{"error":{"message":5}}', "5"),
        (b'{"error":null}', "The provider p refused the request with status 400."),
    ],
)
def test_a_refused_request_is_told_in_the_providers_words(body: bytes, message: str) -> None:
    told = provider().classify(400, {}, body, None).told
    assert isinstance(told, ProviderRefused)
    assert told.relayed.error["message"] == message
    assert set(told.relayed.error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-1", 0.0), ("nan", None), ("soon", None), ("1e9", 3600.0)]
)
def test_a_limit_is_relayed_with_its_delay(text: str, seconds: float | None) -> None:
    told = provider().classify(429, {"Retry-After": text}, b"", None).told
    assert isinstance(told, ProviderRefused)
    assert told.relayed.retry_after == seconds


@pytest.mark.parametrize(("status", "again"), [(500, True), (503, True), (529, True), (302, False), (418, False)])
def test_a_failure_of_the_provider_is_told_as_one(status: int, again: bool) -> None:
    failure = provider().classify(status, {}, b"", None)
    assert isinstance(failure.told, UpstreamError)
    assert failure.again == again


# -- attempts -----------------------------------------------------------------------------------------------------------------


async def test_another_provider_takes_over_before_the_first_byte_and_one_row_tells_of_both() -> None:
    async with running_edge(models=(_both("mock-status-503", "mock"),)) as edge:
        async with edge.post(chat("both")) as response:
            assert response.status == 200
            assert response.headers["x-gateway-attempts"] == "2"
        settlement = await edge.settled()
        assert settlement.served.model == "mock"
        assert [(a["model"], a.get("error"), a.get("status")) for a in json.loads(settlement.attempts_json)] == [
            ("mock-status-503", 503, None),
            ("mock", None, 200),
        ]
        assert len(edge.auth.admitted) == 1


async def test_nothing_is_tried_again_after_a_call_that_went_out_whole_or_an_answer_that_began() -> None:
    for model in ("mock-reset", "mock-silent", "mock-cut", "mock-html", "mock-status-400"):
        async with running_edge(models=(_both(model, "mock"),), upstream_timeouts=(0.5, 0.5, 0.5)) as edge:
            async with edge.post(chat("both")) as response:
                assert response.status >= 400
            await edge.settled()
            assert len(edge.provider.calls) == 1, model


async def test_a_provider_in_trouble_is_called_little_more_often_than_it_must() -> None:
    async with running_edge() as edge:
        for _ in range(60):
            async with edge.post(chat("mock-status-429")) as response:
                assert response.status == 429
        assert len(edge.provider.calls) == 60

        async def one() -> None:
            async with edge.post(chat("mock-status-503")) as response:
                assert response.status == 502

        await asyncio.gather(*(one() for _ in range(60)))
        assert len(edge.provider.calls) - 60 <= 60 * 1.2 + 10
        assert len(edge.outbox.settlements) == 120


async def test_the_second_key_is_tried_when_the_first_is_refused() -> None:
    async with running_edge() as edge:
        good, bad = "good-Qm7Zx2Lp9Vt4", "bad-Qm7Zx2Lp9Vt4Hn"
        providers = [
            ProviderSettings(
                name="p", kind="openai-compatible", base_url=edge.provider.base_url, api_keys=(bad, good), models=["*"]
            )
        ]
        async with running_edge(providers=providers) as second:
            async with second.post(chat("mock-status-401")) as response:
                assert response.status == 502
            sent = [dict(call.headers)["Authorization"] for call in edge.provider.calls]
            assert sent == [f"Bearer {bad}", f"Bearer {good}"]
            assert (await second.settled()).outcome == pb.OUTCOME_RELEASED


def _both(first: str, second: str) -> ModelSettings:
    # The weight makes the first one the first, but for one call in a thousand.
    return ModelSettings(
        name="both",
        targets=[{"provider": "mock", "model": first, "weight": 1000}, {"provider": "mock", "model": second, "weight": 1}],
    )


# -- upstream -----------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def upstream(
    answer: bytes, *, read: int = 1, allowed: dict[str, bool] | None = None
) -> AsyncIterator[tuple[HttpUpstream, URL]]:
    """An upstream, and a server that reads so many bytes, sends these and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(read)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    made = HttpUpstream(connect=0.5, first_byte=0.5, idle=0.5, total=60.0, allowed=allowed or {})
    await made.start()
    try:
        yield made, URL(f"http://127.0.0.1:{port}/v1/chat/completions")
    finally:
        await made.close()
        server.close()
        await server.wait_closed()


async def test_a_body_that_the_provider_does_not_take_whole_was_not_sent() -> None:
    async with upstream(b"", read=1000) as (made, url):
        sending = Sending(b"x" * 20_000_000)
        with pytest.raises(NotSent):
            await made.send(url, {}, sending)
        assert not sending.sent


async def test_a_body_that_went_out_without_an_answer_has_no_status() -> None:
    async with upstream(b"") as (made, url):
        sending = Sending(b"{}")
        with pytest.raises(NoStatus):
            await made.send(url, {}, sending)
        assert sending.sent


class Rebinding(AbstractResolver):
    """A name service that leads a public name inside."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


async def test_a_name_that_leads_inside_is_not_connected_to_unless_that_is_allowed() -> None:
    for allowed, raised in (({}, NotSent), ({"provider.example": True}, NoStatus)):
        async with upstream(b"", allowed=allowed) as (made, url):
            made._resolver._resolver = Rebinding()
            with pytest.raises(raised):
                await made.send(url.with_host("provider.example"), {}, Sending(b"{}"))


async def test_a_compressed_answer_is_unpacked_a_piece_at_a_time() -> None:
    packed = gzip.compress(b"\0" * 50_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with upstream(head + packed, read=100_000) as (made, url):
        reply = await made.send(url, {}, Sending(b"{}"))
        total = 0
        while data := await reply.read():
            assert len(data) <= PIECE
            total += len(data)
        assert total == 50_000_000


async def test_a_bomb_is_refused_and_charged_as_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.relay.MAX_ANSWER", 1000)
    async with running_edge() as edge:
        async with edge.post(chat("mock-gzip", "tokens:2000")) as response:
            assert response.status == 502
        settlement = await edge.settled()
        assert settlement.outcome == pb.OUTCOME_SETTLED
        assert items(settlement)["output"] > 0


async def test_an_answer_cut_in_its_compression_is_broken_off() -> None:
    packed = gzip.compress(b"hello" * 1000)[:-10]
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with upstream(head + packed, read=100_000) as (made, url):
        reply = await made.send(url, {}, Sending(b"{}"))
        with pytest.raises(BrokenOff):
            while await reply.read():
                pass


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_other_compressions_are_not_read(encoding: str) -> None:
    unpacker = Unpacker(encoding)
    unpacker.feed(b"x")
    with pytest.raises(UnpackError):
        unpacker.take()


def test_many_members_are_unpacked_one_after_another() -> None:
    unpacker = Unpacker("gzip")
    unpacker.feed(gzip.compress(b"a") + gzip.compress(b"") + gzip.compress(b"b"))
    assert unpacker.take() + unpacker.take() == b"ab"
    assert unpacker.take() == b""
    unpacker.end()


def test_a_host_may_be_at_any_address_only_if_all_its_providers_say_so() -> None:
    open_one = ProviderSettings(
        name="o", kind="openai-compatible", base_url="http://inner/v1", models=["x"], allow_address=True
    )
    shut = ProviderSettings(name="s", kind="openai-compatible", base_url="http://inner/v1", models=["y"])
    assert allowed_hosts([open_one]) == {"inner": True}
    assert allowed_hosts([open_one, shut]) == {"inner": False}
