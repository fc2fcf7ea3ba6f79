"""The upper bound of a request's input, and what has none."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.text_bound import text_bytes as text_ceiling
from services.proxy.bounds import PER_IMAGE, PER_MESSAGE, chat_bound
from services.proxy.dialects.openai import ChatCall, read_chat
from services.proxy.strict_json import read


def call(**members: object) -> ChatCall:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **members}
    return read_chat(read(json.dumps(body).encode()))


@given(st.text(max_size=200))
def test_no_text_has_fewer_bytes_than_its_ceiling(text: str) -> None:
    assert text_ceiling(text) >= len(text.encode("utf-8", "surrogatepass"))


def test_text_that_grows_when_it_is_normalised_counts_as_what_it_becomes() -> None:
    assert text_ceiling("\ufdfa") == len(
        "\u0635\u0644\u0649 \u0627\u0644\u0644\u0647 \u0639\u0644\u064a\u0647 \u0648\u0633\u0644\u0645".encode()
    )
    assert text_ceiling("\ufdfa" * 100_000) == 100_000 * text_ceiling("\ufdfa")


def test_a_text_call_is_bound_by_its_bytes_and_a_constant_a_message() -> None:
    assert call().bound.ceiling == len("user") + len("hello") + PER_MESSAGE
    assert not call().bound.elsewhere


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=30)), min_size=1, max_size=5))
def test_the_bound_is_never_below_the_bytes_of_all_text(messages: list[tuple[str, str]]) -> None:
    members = {"model": "m", "messages": [{"role": role, "content": text} for role, text in messages]}
    bytes_of_text = sum(len(text.encode()) for _, text in messages)
    assert chat_bound(members).ceiling >= bytes_of_text + PER_MESSAGE * len(messages)


def test_whatever_else_a_model_reads_is_in_the_bound() -> None:
    small = call().bound.ceiling
    long = "x" * 1000
    for members in (
        {"tools": [{"type": "function", "function": {"name": "f", "description": long, "parameters": {}}}]},
        {"functions": [{"name": "f", "description": long}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"description": long}}}},
        {"system": long},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": long}]}]},
        {"messages": [{"role": "user", "content": [long]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": long}}]}]},
        {"messages": [{"role": "user", "content": "hello", "x-unknown": {"deep": [{"deeper": long}]}}]},
        {"messages": [{"role": "user", "content": "hello", "name": long}]},
    ):
        assert call(**members).bound.ceiling >= small + 1000 - 32, members


def part(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [fields]}]}


def test_an_image_in_the_request_has_a_ceiling_of_its_own() -> None:
    bound = call(**part(type="image_url", image_url={"url": "data:image/png;base64," + "A" * 500_000})).bound
    assert PER_IMAGE <= bound.ceiling < PER_IMAGE + 100
    assert not bound.elsewhere


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
        {"type": "image_url", "image_url": "https://example.org/cat.png"},
        {"type": "image_url"},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
        {"type": "video_url", "video_url": {"url": "https://example.org/cat.mp4"}},
        {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "unknown", "file_id": "file-1"},
    ],
)
def test_input_that_lies_elsewhere_is_said_to_be_unbounded(fields: dict[str, object]) -> None:
    assert call(**part(**fields)).bound.elsewhere


def test_audio_is_named_as_a_unit_of_its_own() -> None:
    data = "A" * 64_000
    bound = call(**part(type="input_audio", input_audio={"data": data, "format": "mp3"})).bound
    assert bound.units == ["input_audio"]
    assert 1000 <= bound.ceiling < 2000
    assert call(modalities=["text", "audio"], audio={"voice": "x", "format": "wav"}).bound.units == ["output_audio"]
    assert call(messages=[{"role": "assistant", "audio": {"id": "audio_1"}}]).bound.elsewhere


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ({"service_tier": "priority"}, ["service_tier=priority"]),
        ({"service_tier": "flex"}, []),
        ({"service_tier": None}, []),
        ({"web_search_options": {}}, ["web_search"]),
        ({"prediction": {"type": "content", "content": "x"}}, ["prediction"]),
        ({"plugins": [{"id": "web"}]}, ["plugins"]),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, []),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, []),
        ({"tools": [{"type": "web_search"}, {"type": "code_interpreter"}]}, ["tools=web_search", "tools=code_interpreter"]),
        ({"tools": ["x"]}, ["tools=unknown"]),
    ],
)
def test_what_has_no_bound_of_cost_is_named(members: dict[str, object], found: list[str]) -> None:
    assert call(**members).bound.endless == found


@pytest.mark.parametrize(
    ("members", "limit", "choices"),
    [
        ({}, None, 1),
        ({"max_tokens": None, "n": None}, None, 1),
        ({"max_tokens": 7}, 7, 1),
        ({"max_completion_tokens": 7, "n": 3}, 7, 3),
        ({"max_tokens": 9, "max_completion_tokens": 7, "best_of": 5}, 7, 5),
        ({"max_tokens": 10**30}, 10**12, 1),
    ],
)
def test_limits_are_read_and_the_smaller_counts(members: dict[str, object], limit: int | None, choices: int) -> None:
    read_call = call(**members)
    assert (read_call.limit, read_call.choices) == (limit, choices)


def test_of_two_stated_limits_both_become_what_is_granted() -> None:
    sent = json.loads(call(max_tokens=9, max_completion_tokens=7).upstream_body("m", None, "max_tokens"))
    assert (sent["max_tokens"], sent["max_completion_tokens"]) == (7, 7)
    sent = json.loads(call(max_tokens=9, max_completion_tokens=7).upstream_body("m", 5, "max_tokens"))
    assert (sent["max_tokens"], sent["max_completion_tokens"]) == (5, 5)
    assert json.loads(call().upstream_body("m", 5, "max_completion_tokens"))["max_completion_tokens"] == 5
    assert json.loads(call(max_tokens=None).upstream_body("m", 5, "max_tokens"))["max_tokens"] == 5


def test_thinking_budgets_are_read() -> None:
    assert call(thinking={"type": "enabled", "budget_tokens": 2000}).thinking == 2000
    assert call(reasoning={"max_tokens": 300}).thinking == 300
    assert call(reasoning={"effort": "high"}).thinking == 0


def test_another_model_beside_the_model_is_refused() -> None:
    for name in ("models", "fallbacks"):
        with pytest.raises(InvalidRequest) as caught:
            call(**{name: ["dear-model"]})
        assert caught.value.metadata["param"] == name


def test_a_long_request_leaves_a_sample_behind_that_estimates_the_same() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 50
    bound = call(messages=[{"role": "user", "content": text} for _ in range(200)]).bound
    before = bound.estimate()
    bound.thin()
    assert sum(map(len, bound.texts)) <= 20_000
    assert abs(bound.estimate() - before) <= before / 10
    assert before <= bound.ceiling


# -- strict JSON: the fixed cases are in test_edge_http.py ---------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c:", "\u00e9", "model"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans(), st.sampled_from([None, 1]))
def test_every_valid_object_is_read_as_json_reads_it(value: dict, ascii_only: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert read(body.encode("utf-8")).members == value


@given(
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=5),
    st.dictionaries(KEYS, st.integers() | st.text(max_size=4), max_size=3),
)
def test_an_edited_object_has_the_new_members_and_the_others_unchanged(value: dict, changes: dict) -> None:
    edited = read(json.dumps(value, indent=1).encode()).edited(changes)
    assert json.loads(edited) == {**value, **changes}
    assert list(json.loads(edited)) != [] or not changes


@given(VALUES, VALUES, st.sampled_from(["plain", "escaped"]), st.booleans())
def test_a_repeated_key_is_found_at_any_depth_however_it_is_written(
    first: object, second: object, style: str, deep: bool
) -> None:
    again = '"k\\u0065y"' if style == "escaped" else '"key"'
    body = f'{{"key":{json.dumps(first)},{again}:{json.dumps(second)}}}'
    if deep:
        body = f'{{"x":[1,{{"y":{body}}}],"z":"\\u003a:"}}'
    with pytest.raises(InvalidRequest, match='"key" stands twice'):
        read(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({f"k{n}": n for n in range(200_000)}).encode(),
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b'{"a":' * 100_000,
        b'{"a":' + b"5" * 100_000 + b"}",
        b'{"a":0.' + b"5" * 100_000 + b"}",
        b'{"a":"' + b"\\u003a" * 30_000 + b'"}',
    ],
)
def test_no_body_costs_much_to_read(body: bytes) -> None:
    started = time.process_time()
    try:
        read(body)
    except InvalidRequest as refusal:
        assert len(refusal.message) < 200
    assert time.process_time() - started < 0.5  # a tenth of a second on a quiet machine
