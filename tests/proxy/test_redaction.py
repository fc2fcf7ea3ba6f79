"""A provider's key never reaches a caller or the ledger, whatever the provider says."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.process.settings_tables import ProviderSettings
from services.proxy.providers.redaction import PIECE, REDACTED, Redactor, StreamRedactor
from tests.proxy.edge_harness import KEY, chat, items, running_edge

OTHER = "gsk_0123456789abcdefghij/klmnop+qrst=="
REDACTOR = Redactor([KEY, OTHER])


def pieces(text: str) -> list[str]:
    """The pieces of a key that stand in a text."""
    return [key[at : at + PIECE] for key in (KEY, OTHER) for at in range(len(key) - PIECE + 1) if key[at : at + PIECE] in text]


@given(st.sampled_from([KEY, OTHER]), st.integers(0, 40), st.integers(1, 40), st.text(max_size=30), st.text(max_size=30))
def test_a_piece_of_eight_characters_goes_and_a_shorter_one_stays(
    key: str, start: int, size: int, before: str, behind: str
) -> None:
    piece = key[start : start + size]
    text = f"{before}|{piece}|{behind}".encode("utf-8", "replace").decode()
    redacted = REDACTOR.redact_text(text)
    assert pieces(redacted) == []
    if len(piece) < PIECE:
        assert redacted == text
    else:
        assert redacted == text.replace(piece, REDACTED)


@given(st.lists(st.sampled_from(["plain", "unicode", "UNICODE", "percent"]), min_size=len(OTHER), max_size=len(OTHER)))
def test_a_key_goes_however_its_characters_are_escaped(ways: list[str]) -> None:
    escape = {
        "plain": lambda c: c,
        "unicode": lambda c: f"\\u{ord(c):04x}",
        "UNICODE": lambda c: f"\\u{ord(c):04X}",
        "percent": lambda c: f"%{ord(c):02X}",
    }
    written = "".join(escape[way](character) for way, character in zip(ways, OTHER, strict=True))
    assert REDACTOR.redact(f'{{"a": "x {written} y%20\\u003c"}}'.encode()) == b'{"a": "x [redacted] y%20\\u003c"}'


def test_what_is_no_key_is_not_touched() -> None:
    for text in (
        b"",
        b'{"content": "sk-Q and \\u003cb\\u003e and 100%25 \\/ \\u00e9"}',
        json.dumps({"a": "\u0000" * 50}).encode(),
    ):
        assert REDACTOR.redact(text) == text
    assert Redactor([]).redact(KEY.encode()) == KEY.encode()
    assert Redactor(["short"]).redact(b"a short key") == b"a [redacted] key"


async def test_a_long_answer_is_searched_in_slices_whose_bounds_hide_nothing() -> None:
    whole = b"x" * 700_000
    assert await REDACTOR.redact_long(whole) == whole
    for at in (256 * 1024 - 20, 256 * 1024 - 1, 512 * 1024 - 9):
        data = whole[:at] + KEY.encode() + whole[at:]
        assert await REDACTOR.redact_long(data) == whole[:at] + REDACTED.encode() + whole[at:]


@given(st.lists(st.integers(0, len(KEY)), max_size=40))
def test_a_key_that_is_cut_over_deltas_never_comes_together_again(cuts: list[int]) -> None:
    places = sorted({0, len(KEY), *cuts})
    stream, seen = StreamRedactor(REDACTOR), ""
    for text in ["hello ", *(KEY[a:b] for a, b in itertools.pairwise(places)), " and more"]:
        event = stream.redact(b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n", [text])
        seen += json.loads(event[6:])["choices"][0]["delta"]["content"]
    assert pieces(seen) == []
    assert seen.startswith("hello ")
    assert seen.endswith(" and more")


@pytest.mark.parametrize("known", range(1, 25))
def test_a_key_goes_that_stands_over_the_end_of_how_all_events_begin(known: int) -> None:
    """However much of an event is like the events before it, and has been searched with them."""
    stream, event = StreamRedactor(REDACTOR), b"data: {xxxxxxxx" + KEY[:PIECE].encode() + b"}\n\n"
    for end in (b"1", b"2"):
        stream.redact(event[:known] + end, [])
    for _ in range(2):
        assert pieces(stream.redact(event, []).decode()) == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["plain", "escaped", "quoted", "model", "usage"])
async def test_neither_callers_nor_the_ledger_get_a_key_that_a_provider_says(stream: bool, way: str) -> None:
    written = {"escaped": "".join(f"\\u{ord(c):04x}" for c in KEY), "quoted": quote(KEY, safe="").replace("-", "%2D")}.get(
        way, KEY
    )
    usage: dict[str, object] = {"prompt_tokens": 1, "completion_tokens": 1}
    answer: dict[str, object] = {"model": "m", "choices": [{"index": 0, "finish_reason": "stop"}], "usage": usage}
    if way == "model":
        answer["model"] = f"m {KEY}"
    elif way == "usage":
        usage["by"] = KEY
    else:
        text = {"delta" if stream else "message": {"content": "@"}}
        answer["choices"] = [{"index": 0, "finish_reason": "stop", **text}]
    body = json.dumps(answer).encode().replace(b"@", written.encode())
    sent = b"data: " + body + b"\n\ndata: [DONE]\n\n" if stream else body

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
        kind = b"text/event-stream" if stream else b"application/json"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(sent), sent))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    providers = [ProviderSettings(name="says", kind="openai-compatible", base_url=url, api_keys=(KEY,), models=["*"])]
    async with running_edge(providers=providers) as edge:
        async with edge.post(chat("any", stream=stream, stream_options={"include_usage": True})) as response:
            assert response.status == 200
            seen = (await response.read()).decode() + str(response.headers)
        settlement = await edge.settled()
    server.close()
    await server.wait_closed()
    told = f"{settlement.response_model} {settlement.usage_json} {settlement.attempts_json}"
    assert REDACTED in seen
    assert written not in seen
    assert pieces(seen + told) == []
    assert items(settlement) == {"input": 1, "output": 1}
