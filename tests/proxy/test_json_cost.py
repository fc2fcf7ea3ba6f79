"""Bodies of very many values: counted before they are read, and what takes long to read is read beside the loop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest, Overloaded
from services.proxy import json_cost, reading, strict_json
from services.proxy.dialects.openai import read_chat
from services.proxy.json_cost import MOST_VALUES, has_more_values
from services.proxy.reading import AT_ONCE_IF_ASCII, FEW, FEW_EXPONENTS, Reader, is_costly
from tests.proxy.edge_harness import chat, head, running_edge, until

TEXT = st.text(st.sampled_from('a,[{}]:"\\\n\u00e9\u0001'), max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def counted(value: Any) -> int:
    """Commas and opening brackets of a value's JSON, outside of strings."""
    if isinstance(value, dict):
        return 1 + max(0, len(value) - 1) + sum(map(counted, value.values()))
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(counted, value))
    return 0


@given(VALUES, st.integers(1, 40), st.booleans())
def test_separators_are_counted_outside_of_strings_wherever_pieces_are_cut(value: Any, piece: int, plain: bool) -> None:
    body = json.dumps(value, ensure_ascii=plain).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_cost, "_PIECE", piece)
        assert json_cost._count(body, MOST_VALUES) == counted(value)
    assert json_cost.separators(body) >= counted(value)


def items(count: int, item: str = "1") -> bytes:
    return b'{"x":[' + ",".join([item] * count).encode() + b"]}"


def test_a_body_of_as_many_values_as_allowed_is_read_and_one_of_more_is_refused() -> None:
    assert len(strict_json.read(items(MOST_VALUES - 1)).members["x"]) == MOST_VALUES - 1
    with pytest.raises(InvalidRequest, match=f"more than {MOST_VALUES} JSON values"):
        strict_json.read(items(MOST_VALUES))


@pytest.mark.parametrize("item", ["[]", "{}", '""', '{"a":1}', "[[[[[[]]]]]]"])
def test_no_kind_of_tiny_values_escapes_the_count(item: str) -> None:
    assert has_more_values(items(MOST_VALUES + 1, item), MOST_VALUES)


def test_commas_and_brackets_in_texts_are_not_values() -> None:
    text = 'so, [as] {it} says: "quoted, \\" twice" \\\\ '
    assert strict_json.read(json.dumps({"x": text * 50_000}).encode()).members["x"] == text * 50_000


@pytest.mark.parametrize(
    ("costly", "body"),
    [
        (False, json.dumps(chat()).encode()),
        (False, json.dumps(chat(prompt="a, b " * 12_000)).encode()),
        (False, json.dumps(chat(prompt="a" * 900_000)).encode()),
        (True, json.dumps(chat(prompt="\u00e9" * 30_000)).encode()),
        (True, json.dumps(chat(prompt="a" * AT_ONCE_IF_ASCII)).encode()),
        (True, json.dumps(chat(x=[1] * FEW)).encode()),
        (True, json.dumps(chat(x=[1.7e308] * (FEW_EXPONENTS + 1))).encode()),
        (False, json.dumps(chat(prompt="0e, " * 10, x=[1.5] * 2_000)).encode()),
    ],
    ids=["small", "commas", "long", "escapes", "longer", "dense", "exponents", "fractions"],
)
async def test_a_body_is_read_alike_on_the_spot_and_in_the_process(costly: bool, body: bytes) -> None:
    reader = Reader()
    assert is_costly(body) is costly
    here = read_chat(strict_json.read(body))
    try:
        there = await asyncio.to_thread(reader._process.read, body)
        assert (await reader.read(body)).bound.ceiling == here.bound.ceiling
    finally:
        await reader.close()
    assert there.upstream_body("other", 7, "max_tokens") == here.upstream_body("other", 7, "max_tokens")
    assert (there.model, there.bound.ceiling, there.bound.characters) == (here.model, here.bound.ceiling, here.bound.characters)
    assert (there.body, there.limit, there.choices) == (body, here.limit, here.choices)


async def test_what_is_wrong_with_a_costly_body_is_told_by_name() -> None:
    reader = Reader()
    try:
        with pytest.raises(InvalidRequest, match="`max_tokens` must be") as refused:
            await reader.read(json.dumps(chat(prompt="a" * AT_ONCE_IF_ASCII, max_tokens="x")).encode())
    finally:
        await reader.close()
    assert refused.value.metadata == {"param": "max_tokens"}


async def test_a_process_that_is_gone_is_started_again_and_one_that_dies_costs_its_caller_one_try() -> None:
    reader, dense = Reader(), json.dumps(chat(x=[1] * FEW)).encode()
    large = json.dumps(chat(prompt="a" * (24 << 20))).encode()
    try:
        await reader.read(dense)
        reader._process._process.kill()
        await asyncio.to_thread(reader._process._process.wait)
        assert (await reader.read(dense)).model == "mock"
        reading = asyncio.ensure_future(reader.read(large))
        await asyncio.sleep(0.02)
        reader._process.kill()
        with pytest.raises(Overloaded):
            await reading
        assert (await reader.read(dense)).model == "mock"
    finally:
        await reader.close()


async def test_the_process_gets_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-provider-key")
    reader = Reader()
    try:
        await reader.read(json.dumps(chat(x=[1] * FEW)).encode())
        environment = psutil.Process(reader._process._process.pid).environ()
    finally:
        await reader.close()
    assert "sk-a-provider-key" not in environment.values()


async def test_the_process_ends_when_there_has_been_nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "IDLE", 0.05)
    reader = Reader()
    await reader.read(json.dumps(chat(x=[1] * FEW)).encode())
    process = reader._process._process
    await until(lambda: process.poll() is not None)
    await reader.close()


async def test_other_callers_are_answered_while_a_large_body_is_read() -> None:
    async with running_edge() as edge:
        dense = json.dumps(chat(x=[{"a": 1}] * 40_000)).encode()
        reading = asyncio.ensure_future(
            edge.raw(
                head("POST", "/v1/chat/completions", f"Content-Length: {len(dense)}", "Connection: close") + dense, until=10
            )
        )
        answered = 0
        while not reading.done():
            async with edge.session.get(edge.url + "/healthz") as response:
                answered += response.status == 200
        assert reading.result().startswith(b"HTTP/1.1 200")
        assert answered > 3
