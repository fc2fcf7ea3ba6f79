"""Connections without a valid request: what they may hold, how long, how many there may be, and what others notice."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from services.proxy import answers, arrivals, listener, ports, protocol, request_log, server, writes
from services.proxy.connections import Places, origin_of
from services.proxy.server import EdgeServer
from tests.conftest import LogLines
from tests.proxy.edge_harness import Edge, body_of, chat, head, running_edge, status_of, until

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n"
HALF = b"GET /healthz HTTP/1.1\r\nHost: ed"


@asynccontextmanager
async def connected(edge: Edge, source: str = "127.0.0.1") -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


def fields(count: int, size: int) -> bytes:
    return b"".join(b"x-%d: %s\r\n" % (number, b"a" * size) for number in range(count))


def slow(edge: Edge, buffer: int = 4096) -> socket.socket:
    """A connection of a caller whose system takes little for them while they do not read."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    caller.settimeout(5)
    caller.connect(("127.0.0.1", edge.port))
    return caller


# -- heads -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [False, True])
async def test_a_head_above_64_kib_is_refused_whether_it_ends_or_not(ends: bool) -> None:
    async with running_edge() as edge:
        opening = b"GET /healthz HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n"
        fitting = opening + fields(8, 8_000) + b"\r\n"
        assert len(fitting) < protocol.MAX_HEAD < len(opening + fields(9, 8_000))
        assert status_of(await edge.raw(fitting)) == 200
        answer = await edge.raw(opening + fields(9, 8_000) + (b"\r\n" if ends else b""))
        assert (status_of(answer), body_of(answer)["error"]["code"]) == (431, "invalid_request")
        assert edge.server.unread.total == 0


async def test_unfinished_heads_share_a_limit_and_the_largest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "EdgeServer", partial(EdgeServer, unread=100_000))
    async with running_edge() as edge, connected(edge) as (large, sender):
        sender.write(b"GET / HTTP/1.1\r\n" + fields(6, 8_000))
        await until(lambda: edge.server.unread.total > 48_000)
        async with connected(edge) as (_, second), connected(edge) as (_, third):
            for writer in (second, third):
                writer.write(b"GET / HTTP/1.1\r\n" + fields(4, 8_000))
            answer = await rest(large)
            assert (status_of(answer), body_of(answer)["error"]["code"]) == (503, "overloaded")
            await until(lambda: 64_000 < edge.server.unread.total < 66_000)
            assert status_of(await edge.raw(HEALTH)) == 200
        await until(lambda: edge.server.unread.total == 0)


async def test_a_head_in_more_than_256_pieces_is_refused() -> None:
    async with running_edge() as edge, connected(edge) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: edge\r\nx: ")
        async with asyncio.timeout(20):
            while not edge.server.ended:
                writer.write(b"a")
                await asyncio.sleep(0.001)
        assert edge.server.ended == {"head_in_pieces": 1}
        assert status_of(await rest(reader)) == 431


@pytest.mark.parametrize("behind", [HEALTH, HEALTH + HEALTH])
async def test_a_half_head_behind_whole_requests_has_the_time_of_a_head(monkeypatch: pytest.MonkeyPatch, behind: bytes) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIME", 0.3)
    async with running_edge() as edge, connected(edge) as (reader, writer):
        writer.write(behind + HALF)
        answer = await rest(reader)
        assert answer.count(b"HTTP/1.1 200 OK") == behind.count(b"GET")
        assert b"HTTP/1.1 408 " in answer


async def test_whole_requests_without_a_half_one_behind_them_leave_the_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIME", 0.1)
    async with running_edge() as edge, connected(edge) as (reader, writer):
        writer.write(HEALTH + HEALTH + b"\r\n")
        for _ in range(2):
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.3)
        writer.write(HEALTH)
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")


async def test_requests_in_one_stream_are_the_same_however_their_bytes_are_cut() -> None:
    body = json.dumps(chat(prompt="cut \r\n\r\n where you like")).encode()
    with_length = head("POST", "/v1/chat/completions", f"Content-Length: {len(body)}") + body
    in_chunks = head("POST", "/v1/chat/completions", "Transfer-Encoding: chunked")
    in_chunks += b"5\r\n" + body[:5] + b"\r\n" + b"%x\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\n\r\n"
    stream = b"\r\n" + HEALTH + with_length + HEALTH
    async with running_edge() as edge:
        for first in (stream, in_chunks):
            for cut in range(1, len(first), 7):
                async with connected(edge) as (reader, writer):
                    writer.write(first[:cut])
                    await asyncio.sleep(0)
                    await asyncio.sleep(0.002)
                    writer.write(first[cut:])
                    for _ in range(3 if first is stream else 1):
                        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                        assert status_of(answer) == 200
                        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                        await reader.readexactly(length)
                    writer.write(HEALTH)  # whatever was cut, the connection goes on
                    assert status_of(await asyncio.wait_for(reader.readuntil(b"}"), 5)) == 200


async def test_what_one_packet_brings_behind_a_body_in_chunks_ends_the_connection_with_notice() -> None:
    body = json.dumps(chat()).encode()
    request = head("POST", "/v1/chat/completions", "Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    async with running_edge() as edge:
        for behind in (HEALTH, HALF):
            answer = await edge.raw(request + behind)
            assert status_of(answer) == 200
            assert (answer.count(b"HTTP/1.1 "), b"\r\nConnection: close\r\n" in answer) == (1, True)


# -- callers who do not read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/openapi.json", "/nothing"])
async def test_a_caller_who_never_reads_loses_the_connection(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(writes, "WINDOW", 0.3)
    monkeypatch.setattr(protocol, "MAX_PIPELINED", 10_000)
    async with running_edge() as edge:
        with slow(edge) as caller:
            caller.setblocking(False)
            request = f"GET {target} HTTP/1.1\r\nHost: edge\r\n\r\n".encode() * 200
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(10):
                    while True:
                        await asyncio.get_running_loop().sock_sendall(caller, request)
            await until(lambda: edge.server.open_connections == 0)
        assert edge.server.ended == {"write_late": 1}


async def test_a_connection_that_ends_does_not_wait_for_a_caller_who_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "WINDOW", 0.3)
    monkeypatch.setattr(protocol, "WRITE_AHEAD", 20_000_000)  # the answer counts as sent, and the connection as closing
    async with running_edge() as edge:
        body = json.dumps(chat(prompt="tokens:1500000")).encode()
        with slow(edge) as caller:
            caller.sendall(head("POST", "/v1/chat/completions", "Connection: close", f"Content-Length: {len(body)}") + body)
            await edge.settled()
            await until(lambda: edge.app.open_requests == 0)
            assert edge.server.open_connections == 1
            await until(lambda: edge.server.open_connections == 0)
        assert edge.server.ended == {"write_late": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_reads_slowly_gets_everything(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setattr(writes, "WINDOW", 0.5)
    monkeypatch.setattr(writes, "SLOWEST", 100_000)
    async with running_edge() as edge:
        body = json.dumps(chat(prompt="tokens:300000 chunks:100", stream=stream)).encode()
        with slow(edge, 65_536) as caller:
            caller.sendall(head("POST", "/v1/chat/completions", "Connection: close", f"Content-Length: {len(body)}") + body)
            caller.setblocking(False)
            answer, loop = b"", asyncio.get_running_loop()
            while part := await loop.sock_recv(caller, 16_384):
                answer += part
                await asyncio.sleep(0.05)  # 320 KiB/s, three times what must be
        assert len(answer) > 1_000_000
        assert answer.endswith(b"0\r\n\r\n" if stream else b"}")
        assert not edge.server.ended


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_answers_that_are_not_taken_hold_up_the_pipeline_and_are_kept_once_for_all(
    monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setattr(server, "TURN", 0.0)
    run = asyncio.run if loop == "asyncio" else pytest.importorskip("uvloop").run

    async def calls() -> int:
        async with running_edge() as edge:
            callers = [slow(edge) for _ in range(100)]
            async with edge.get("/openapi.json") as response:
                size = len(await response.read())
            tracemalloc.start()
            try:
                for caller in callers:
                    caller.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: edge\r\n\r\n" * 90)
                await asyncio.sleep(1.0)
                answered = edge.server.requests_count - 1
                held = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
                for caller in callers:
                    caller.close()
        assert answered <= 100 * 8, "the system takes in some of them, but not 90 for each"
        return held // 100 // size

    assert run(calls()) < (1 if loop == "uvloop" else 3), "asyncio copies what it keeps, and uvloop does not"


async def test_requests_behind_answers_that_are_not_taken_share_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "EdgeServer", partial(EdgeServer, unread=50_000))
    async with running_edge() as edge:
        callers = [slow(edge) for _ in range(20)]
        for caller in callers:
            caller.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: edge\r\n\r\n" * 20)
        await asyncio.sleep(1.0)
        tracemalloc.start()
        try:
            for caller in callers:
                caller.sendall(HEALTH * 400)
            await until(lambda: edge.server.ended["unread"] >= 15)
            kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, protocol.__file__)])
        finally:
            tracemalloc.stop()
        assert edge.server.open_connections == 20, "they end when their callers have had the time to take what waits"
        assert edge.server.unread.total <= 50_000
        assert sum(trace.size for trace in kept.traces) < 100_000
        for caller in callers:
            caller.close()


async def test_one_connections_pipeline_leaves_the_edge_to_others() -> None:
    async with running_edge() as edge:
        callers = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(40)]
        async with connected(edge) as (reader, writer):
            writer.write(HEALTH)
            await reader.readuntil(b"}")
            for _, pipelining in callers:
                pipelining.write(b"GET /nothing HTTP/1.1\r\nHost: edge\r\n\r\n" * 50)
            await asyncio.sleep(0.02)
            before = edge.server.requests_count
            for _ in range(5):
                writer.write(HEALTH)
                await reader.readuntil(b"}")
            between = edge.server.requests_count - before
        for _, pipelining in callers:
            pipelining.transport.abort()
        # Each turn of the loop would else serve one request of each connection.
        assert between < 5 * 40, between


async def test_a_pipeline_is_answered_in_order_and_ends_with_notice_at_its_limit() -> None:
    async with running_edge() as edge:
        targets = [f"/nothing/{number}" for number in range(150)]
        answer = await edge.raw(b"".join(head("GET", target) for target in targets))
        assert answer.count(b"HTTP/1.1 404") == protocol.MAX_PIPELINED + 1
        assert answer.count(b"\r\nConnection: close\r\n") == 1
        assert answer.rfind(b"\r\nConnection: close\r\n") > answer.rfind(b"HTTP/1.1 404")


async def test_the_description_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_edge() as edge:

        def fail(_: object) -> bytes:
            raise AssertionError("it was made again")

        monkeypatch.setattr(answers, "_encode", fail)
        async with edge.get("/openapi.json") as response:
            assert response.status == 200
            assert "paths" in await response.json()


# -- connections that say nothing ------------------------------------------------------------------------------------------


async def test_a_connection_that_says_nothing_ends_like_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "KEEPALIVE", 0.3)
    async with running_edge() as edge:
        async with connected(edge) as (first, _), connected(edge) as (second, _):
            await until(lambda: edge.server.open_connections == 2)
            assert (await rest(first), await rest(second)) == (b"", b"")
        await until(lambda: edge.server.open_connections == 0)
        assert not edge.server.ended


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_ends_before_it_says_anything_leaves_its_place(reset: bool) -> None:
    async with running_edge() as edge:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
            await until(lambda: edge.server.open_connections == 1)
            if reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            await until(lambda: edge.server.open_connections == 0)
        assert edge.server.requests_count == 0


async def test_who_opens_hundreds_of_connections_at_once_does_not_stand_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "PAUSE", 0.01)
    async with running_edge() as edge:
        crowd = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(200)]
        for _, writer in crowd:
            writer.write(HEALTH)
        await asyncio.sleep(0.1)
        async with connected(edge, "127.0.0.2") as (reader, writer):
            writer.write(HEALTH)
            assert status_of(await reader.readuntil(b"}")) == 200
            assert edge.server.requests_count < 100
        answers = [status_of(await reader.readuntil(b"}")) for reader, _ in crowd]
        assert answers == [200] * 200
        for _, writer in crowd:
            writer.close()


async def test_the_edge_ends_while_connections_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "PAUSE", 1.0)
    async with running_edge() as edge:
        crowd = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(10)]
        for _, writer in crowd[:5]:
            writer.write(HEALTH)
        await until(lambda: edge.server.open_connections == 10)
        await asyncio.sleep(0.1)
    assert edge.server.open_connections == 0
    for reader, writer in crowd:
        await rest(reader)
        writer.close()


# -- how many --------------------------------------------------------------------------------------------------------------


async def test_idle_connections_of_one_address_give_way_above_its_limit_and_others_are_not_touched() -> None:
    async with running_edge(max_connections_per_address=3) as edge, connected(edge, "127.0.0.2") as (other, _):
        mine = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(3)]
        await until(lambda: edge.server.open_connections == 4)
        mine[1][1].write(HALF)  # a half request is none
        async with edge.get("/healthz") as response:
            assert response.status == 200
        assert await rest(mine[0][0]) == b""
        assert not any(reader.at_eof() for reader in (other, mine[1][0], mine[2][0]))
        assert edge.server.ended == {"gave_way": 1}
        for _, writer in mine:
            writer.transport.abort()


async def test_connections_with_an_open_request_do_not_give_way() -> None:
    async with running_edge(max_connections_per_address=2) as edge:
        edge.auth.hold_answers = asyncio.Event()
        body = json.dumps(chat()).encode()
        request = head("POST", "/v1/chat/completions", f"Content-Length: {len(body)}", "Connection: close") + body
        calls = [asyncio.create_task(edge.raw(request)) for _ in range(2)]
        await until(lambda: edge.app.open_requests == 2)
        assert await edge.raw(HEALTH) == b""
        async with connected(edge, "127.0.0.2") as (reader, writer):
            writer.write(HEALTH)
            assert status_of(await reader.readuntil(b"}")) == 200
        edge.auth.hold_answers.set()
        assert [status_of(answer) for answer in await asyncio.gather(*calls)] == [200, 200]


async def test_where_all_places_are_taken_the_address_with_the_most_idle_connections_makes_room() -> None:
    async with running_edge(connections=4) as edge, connected(edge, "127.0.0.2") as (alone, _):
        crowd = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(3)]
        await until(lambda: edge.server.open_connections == 4)
        async with connected(edge, "127.0.0.3") as (reader, writer):
            writer.write(HEALTH)
            assert status_of(await reader.readuntil(b"}")) == 200
            assert await rest(crowd[0][0]) == b""
            assert not alone.at_eof()
        for _, idle in crowd:
            idle.transport.abort()


async def test_a_trusted_proxy_may_have_more_connections_than_others() -> None:
    async with running_edge(max_connections_per_address=2, trusted_proxies="127.0.0.1") as edge:
        kept = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(5)]
        await until(lambda: edge.server.open_connections == 5)
        assert edge.server.ended["gave_way"] == 0
        for _, writer in kept:
            writer.transport.abort()


def test_an_ipv6_address_counts_with_its_network_and_a_mapped_one_as_what_it_is() -> None:
    assert origin_of("2001:db8:1:2:3::4") == origin_of("2001:db8:1:2::1") != origin_of("2001:db8:1:3::1")
    assert origin_of("::ffff:203.0.113.7") == origin_of("203.0.113.7") == "203.0.113.7"
    assert origin_of("fe80::1%eth0") == origin_of("fe80::2")
    places = Places(10, 1)
    first = places.enter("2001:db8::1")
    assert first is not None
    assert places.enter("2001:db8::2") is None
    first.leave()
    first.leave()
    assert (places.taken, places.enter("2001:db8::2") is None) == (0, False)


# -- the log ---------------------------------------------------------------------------------------------------------------


async def test_a_flood_of_refused_requests_writes_few_lines_and_admitted_calls_keep_theirs(
    monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(request_log, "EVERY", 0.2)
    async with running_edge() as edge:
        for number in range(100):
            async with edge.session.get(f"{edge.url}/nothing/{number}") as response:
                assert response.status == 404
        for _ in range(3):
            async with edge.post(chat()) as response:
                assert response.status == 200
        await until(lambda: any(line["event"] == "requests_summarized" for line in log_lines()))
    lines = log_lines()
    statuses = [line["status"] for line in lines if line["event"] == "request"]
    summaries = [line for line in lines if line["event"] == "requests_summarized"]
    assert statuses.count(200) == 3
    assert 30 <= statuses.count(404) < 50
    assert statuses.count(404) + sum(line["count"] for line in summaries) == 100
    assert all(line["kinds"] == {"ROUTE_NOT_FOUND": line["count"]} and line["sources"] == 1 for line in summaries)


async def test_connections_that_were_ended_before_their_time_are_summed_up_in_the_log(
    monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(server, "EVERY", 0.1)
    async with running_edge() as edge:
        for _ in range(3):
            await edge.raw(b"GET / HTTP/1.1\r\n" + fields(9, 8_000))
        await until(lambda: any(line["event"] == "connections_ended" for line in log_lines()))
        await asyncio.sleep(0.2)
    told = [line["head_too_large"] for line in log_lines() if line["event"] == "connections_ended"]
    assert sum(told) == 3
