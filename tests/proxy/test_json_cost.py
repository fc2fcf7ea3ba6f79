"""Bodies of very many values: counted before they are read, and what takes long to read is read beside the loop."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from services.proxy import json_cost, strict_json
from services.proxy.json_cost import MOST_VALUES, has_too_many_values
from services.proxy.reading import AT_ONCE, Reader
from services.proxy.strict_json import Document
from tests.proxy.edge_harness import chat, head, running_edge

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
        assert json_cost._count(body) == counted(value)
    assert json_cost.separators(body) >= counted(value)


def items(count: int, item: str = "1") -> bytes:
    return b'{"x":[' + ",".join([item] * count).encode() + b"]}"


def test_a_body_of_as_many_values_as_allowed_is_read_and_one_of_more_is_refused() -> None:
    assert len(strict_json.read(items(MOST_VALUES - 1)).members["x"]) == MOST_VALUES - 1
    with pytest.raises(InvalidRequest, match=f"more than {MOST_VALUES} JSON values"):
        strict_json.read(items(MOST_VALUES))


@pytest.mark.parametrize("item", ["[]", "{}", '""', '{"a":1}', "[[[[[[]]]]]]"])
def test_no_kind_of_tiny_values_escapes_the_count(item: str) -> None:
    assert has_too_many_values(items(MOST_VALUES + 1, item))


def test_commas_and_brackets_in_texts_are_not_values() -> None:
    text = 'so, [as] {it} says: "quoted, \\" twice" \\\\ '
    assert strict_json.read(json.dumps({"x": text * 50_000}).encode()).members["x"] == text * 50_000


async def test_what_takes_long_to_read_is_read_in_a_thread_and_what_does_not_is_read_at_once() -> None:
    def where(_: Document) -> int:
        return threading.get_ident()

    reader, here = Reader(), threading.get_ident()
    assert await reader.read(b'{"x":1}', where) == here
    assert await reader.read(b'{"x":"' + b"a" * AT_ONCE + b'"}', where) == here
    assert await reader.read(b'{"x":"' + b"a" * (1 << 20) + b'"}', where) != here
    assert await reader.read(items(50_000), where) != here
    with pytest.raises(InvalidRequest):
        await reader.read(items(50_000) + b"x", where)


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
