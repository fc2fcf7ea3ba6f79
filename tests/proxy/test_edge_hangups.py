"""Callers who go away, and callers who read slowly."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from contextlib import suppress

import psutil
import pytest

from gateway.stubs.auth.v1 import auth_pb2 as pb
from tests.proxy.edge_harness import TOKEN, Edge, chat, items, running_edge, until


def request(body: object, **headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: edge",
        f"Authorization: Bearer {TOKEN}",
        f"Content-Length: {len(data)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def accepted(edge: Edge) -> None:
    await until(lambda: bool(edge.provider.calls))


async def aborted(edge: Edge) -> None:
    await until(lambda: edge.provider.calls[0].saw_abort, seconds=1.0)


async def leave(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("events", [1, 5, 15])
async def test_a_caller_who_leaves_a_stream_pays_for_what_was_generated(reset: bool, events: int) -> None:
    async with running_edge() as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(request(chat(prompt="tokens:20 chunks:20 seconds:2", stream=True)))
        for _ in range(events):
            await reader.readuntil(b"\n\n\r\n")
        await leave(writer, reset=reset)
        settlement = await edge.settled()
        await aborted(edge)
        assert settlement.outcome == pb.OUTCOME_SETTLED
        assert settlement.source == pb.USAGE_SOURCE_ESTIMATED
        assert settlement.error_code == "client_closed"
        assert abs(items(settlement)["output"] - edge.provider.calls[0].tokens_generated) <= 1
        assert items(settlement)["input"] > 0


@pytest.mark.parametrize("reset", [False, True])
async def test_a_caller_who_leaves_before_a_stream_begins_pays_for_its_input(reset: bool) -> None:
    async with running_edge() as edge:
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(request(chat("mock-silent", stream=True)))
        await accepted(edge)
        await leave(writer, reset=reset)
        settlement = await edge.settled()
        await aborted(edge)
        assert settlement.outcome == pb.OUTCOME_SETTLED
        assert settlement.source == pb.USAGE_SOURCE_ESTIMATED
        assert items(settlement)["input"] > 0


async def test_a_caller_who_leaves_an_answer_in_one_piece_pays_the_hold_as_nobody_knows_how_much_was_made() -> None:
    async with running_edge() as edge:
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(request(chat(prompt="seconds:5")))
        await accepted(edge)
        await leave(writer, reset=False)
        settlement = await edge.settled()
        await aborted(edge)
        assert settlement.outcome == pb.OUTCOME_SETTLED_AT_HOLD
        assert settlement.error_code == "client_closed"


async def test_a_caller_who_leaves_while_he_is_judged_pays_nothing_and_nothing_is_sent() -> None:
    async with running_edge() as edge:
        edge.auth.hold_answers = asyncio.Event()
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(request(chat()))
        await asyncio.sleep(0.05)
        await leave(writer, reset=False)
        await until(lambda: bool(edge.auth.abandoned), seconds=1.0)
        assert not edge.outbox.settlements
        assert not edge.provider.calls


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("early", [False, True])
async def test_where_answers_are_drained_the_providers_numbers_are_charged(stream: bool, early: bool) -> None:
    async with running_edge(on_hangup="drain") as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(request(chat(prompt="tokens:20 chunks:20 seconds:0.5", stream=stream)))
        await accepted(edge)
        if stream and not early:
            await reader.readuntil(b"\n\n\r\n")
        await leave(writer, reset=False)
        settlement = await edge.settled()
        assert settlement.outcome == pb.OUTCOME_SETTLED
        assert settlement.source == pb.USAGE_SOURCE_PROVIDER
        assert items(settlement)["output"] == 20
        assert not edge.provider.calls[0].saw_abort


async def test_a_stream_notes_its_progress_once_a_second() -> None:
    async with running_edge() as edge:
        async with edge.post(chat(prompt="tokens:25 chunks:25 seconds:2.5", stream=True)) as response:
            await response.read()
        assert len(edge.outbox.noted) == 2
        outputs = [items(note)["output"] for note in edge.outbox.noted]
        assert 0 < outputs[0] < outputs[1] < 25
        assert all(note.source == pb.USAGE_SOURCE_ESTIMATED for note in edge.outbox.noted)


async def test_a_slow_reader_holds_the_provider_back_and_not_our_memory() -> None:
    async with running_edge() as edge:
        process = psutil.Process(os.getpid())
        before = process.memory_info().rss
        writers = []
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", edge.port, limit=1024)
            writer.write(request(chat(prompt="tokens:40000000 chunks:4000", stream=True)))
            writers.append(writer)
        sent, now = -1, 0
        async with asyncio.timeout(20):
            while sent < now or not now:
                await asyncio.sleep(0.5)
                sent, now = now, sum(call.bytes_sent for call in edge.provider.calls)
        grown = process.memory_info().rss - before
        for writer in writers:
            await leave(writer, reset=True)
        assert now < 100_000_000, "of a thousand megabytes, only what fits into buffers is taken from the provider"
        assert grown < 100_000_000
        await edge.settled(5)
