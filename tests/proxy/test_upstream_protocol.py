"""Waits on a provider: whatever it sends and however that is cut, each wait ends, and no byte before a fault is lost."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from yarl import URL

from services.proxy.upstream import BrokenOff, Reply, Sending, UpstreamFailure
from services.proxy.upstream_http import HttpUpstream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKS = [b"data: one\n\n", b"data: two\n\n", b"data: three\n\n"]
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b"".join(CHUNKS)
IN_CHUNKS = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in CHUNKS)
LAST = b"0\r\n\r\n"
BY_LENGTH = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY)
SILENCE, TOTAL = 0.3, 2.0
SLACK = 1.0

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@asynccontextmanager
async def upstream(serve: Serve, *, total: float = TOTAL) -> AsyncIterator[tuple[HttpUpstream, URL]]:
    """An upstream, and a server that reads a request and then does as it is told."""
    served = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        try:
            while await reader.readuntil(b"\r\n\r\n{}"):
                await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    made = HttpUpstream(connect=1.0, first_byte=SILENCE, idle=SILENCE, total=total, allowed={})
    await made.start()
    try:
        yield made, URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions")
    finally:
        await made.close()
        server.close()
        await server.wait_closed()


def sends(*pieces: bytes, pause: float = 0.0, end: str = "stays") -> Serve:
    """A server that sends these pieces, and then stays, closes or resets the connection."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        if end == "resets":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif end == "closes":
            writer.close()

    return serve


async def read(reply: Reply) -> tuple[bytes, BrokenOff | None]:
    """What comes of a body, and how it ended."""
    got = b""
    try:
        async with asyncio.timeout(TOTAL + SLACK):
            while piece := await reply.read():
                got += piece
    except BrokenOff as failure:
        return got, failure
    finally:
        reply.close()
    return got, None


async def ask(made: HttpUpstream, url: URL) -> tuple[bytes, UpstreamFailure | None]:
    """The body of one call, and how it ended; fails where a wait does not end in its time."""
    try:
        async with asyncio.timeout(TOTAL + SLACK):
            reply = await made.send(url, {}, Sending(b"{}"))
    except UpstreamFailure as failure:
        return b"", failure
    return await read(reply)


@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["in one packet", "apart"])
@pytest.mark.parametrize("fault", [b"zz\r\n", b"-5\r\n", b"\x00\xff", b"fffffffffffffffffff\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_bad_chunk_size_at_any_chunk_ends_the_answer_with_all_that_came_before(fault: bytes, pause: float) -> None:
    for count in range(len(CHUNKS) + 1):
        good = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in CHUNKS[:count])
        async with upstream(sends(CHUNKED + good, fault, pause=pause)) as (made, url):
            got, failure = await ask(made, url)
        assert got == b"".join(CHUNKS[:count])
        assert isinstance(failure, BrokenOff)
        assert not failure.late  # the fault ended it, not the silence behind it


@pytest.mark.parametrize("end", ["stays", "closes", "resets"])
@pytest.mark.parametrize(("head", "framed"), [(CHUNKED, IN_CHUNKS + LAST), (BY_LENGTH, BODY)], ids=["chunked", "by length"])
async def test_an_answer_cut_at_any_byte_ends_as_broken_off(head: bytes, framed: bytes, end: str) -> None:
    whole = head + framed
    cuts = list(range(1, len(whole)))
    for start in range(0, len(cuts), 40):
        await asyncio.gather(*(_cut(whole[:cut], framed if cut > len(head) else b"", end) for cut in cuts[start : start + 40]))


async def _cut(sent: bytes, framed: bytes, end: str) -> None:
    async with upstream(sends(sent, end=end)) as (made, url):
        got, failure = await ask(made, url)
    assert failure is not None
    assert failure.late == (end == "stays")
    expected = decoded(sent) if framed else b""
    assert got == expected or (end == "resets" and expected.startswith(got))  # a reset may overtake what was sent before it


def decoded(sent: bytes) -> bytes:
    """The body in what was sent of an answer."""
    head, _, rest = sent.partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return rest
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body


@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["in one packet", "apart"])
@pytest.mark.parametrize("end", ["stays", "closes", "resets"])
@pytest.mark.parametrize("whole", [CHUNKED + IN_CHUNKS + LAST, BY_LENGTH + BODY], ids=["chunked", "by length"])
@pytest.mark.parametrize(
    "garbage", [b"garbage", b"\x00" * 100, b"\r\n\r\nzz", BY_LENGTH + BODY], ids=["text", "nulls", "lines", "answer"]
)
async def test_garbage_behind_a_whole_answer_takes_nothing_of_it_away(
    whole: bytes, garbage: bytes, end: str, pause: float
) -> None:
    pieces = (whole + garbage,) if not pause else (whole, garbage)
    async with upstream(sends(*pieces, pause=pause, end=end)) as (made, url):
        assert await ask(made, url) == (BODY, None)


async def test_an_answer_that_nobody_asked_for_is_never_taken_for_the_next_calls() -> None:
    for pause in (0.0, 0.02):
        foreign = HEAD + b"Content-Length: 7\r\n\r\nforeign"
        pieces = (BY_LENGTH + BODY + foreign,) if not pause else (BY_LENGTH + BODY, foreign)
        async with upstream(sends(*pieces, pause=pause)) as (made, url):
            for _ in range(3):
                assert await ask(made, url) == (BODY, None)
                await asyncio.sleep(3 * pause)


async def test_a_head_with_its_first_data_in_one_packet_and_then_silence_meets_the_idle_limit() -> None:
    for head, framed in ((CHUNKED, IN_CHUNKS), (BY_LENGTH, CHUNKS[0]), (HEAD + b"\r\n", CHUNKS[0])):
        async with upstream(sends(head + framed)) as (made, url):
            got, failure = await ask(made, url)
        assert got.startswith(CHUNKS[0])
        assert failure is not None
        assert failure.late


async def test_a_provider_that_drips_meets_the_total_limit_in_the_head_and_in_the_body() -> None:
    for sent, total in ((CHUNKED + IN_CHUNKS, 0.6), (BY_LENGTH + BODY, 0.6), (HEAD, 0.6)):
        pieces = [sent[at : at + 1] for at in range(len(sent))]
        async with upstream(sends(*pieces, pause=0.05), total=total) as (made, url):
            started = asyncio.get_running_loop().time()
            _, failure = await ask(made, url)
            assert failure is not None
            assert failure.late
            assert asyncio.get_running_loop().time() - started < total + SLACK


async def test_an_answer_until_the_end_of_the_connection_is_whole_at_an_orderly_end_only() -> None:
    for end, is_whole in (("closes", True), ("resets", False)):
        async with upstream(sends(HEAD + b"\r\n" + BODY, pause=0.05, end=end)) as (made, url):
            got, failure = await ask(made, url)
        assert got == BODY
        assert (failure is None) == is_whole


async def test_a_caller_who_reads_slowly_is_not_taken_for_a_silent_provider() -> None:
    body = b"x" * 1_000_000
    async with upstream(sends(HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body), total=20.0) as (made, url):
        reply = await made.send(url, {}, Sending(b"{}"))
        got = b""
        for _ in range(3):
            got += await reply.read()
            await asyncio.sleep(2 * SILENCE)
        rest, failure = await read(reply)
    assert failure is None
    assert got + rest == body


@pytest.mark.parametrize(("sent", "status"), [(600, 502), (799, 502), (999, 502), (599, 599)])
async def test_a_status_beyond_those_of_http_is_a_502(sent: int, status: int) -> None:
    async with upstream(sends(b"HTTP/1.1 %d Odd\r\nContent-Length: 2\r\n\r\n{}" % sent)) as (made, url):
        reply = await made.send(url, {}, Sending(b"{}"))
        assert reply.status == status
        reply.close()


async def test_a_status_below_those_of_http_ends_the_call_at_once() -> None:
    async with upstream(sends(b"HTTP/1.1 099 Odd\r\nContent-Length: 2\r\n\r\n{}")) as (made, url):
        _, failure = await ask(made, url)
    assert failure is not None
    assert not failure.late


async def test_no_connection_and_no_timer_is_left_behind_by_any_of_it() -> None:
    for answer in (CHUNKED + b"zz\r\n", BY_LENGTH + BODY + b"garbage", b"nonsense\r\n\r\n", CHUNKED + IN_CHUNKS + LAST):
        async with upstream(sends(answer)) as (made, url):
            for _ in range(5):
                await ask(made, url)
    await asyncio.sleep(0.05)
    gc.collect()
    left = [timer for timer in gc.get_objects() if isinstance(timer, asyncio.TimerHandle) and not timer.cancelled()]
    assert [timer for timer in left if "Call._look" in repr(timer)] == []
