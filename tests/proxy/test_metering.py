"""What the meter counts, whatever a provider tells and however its bytes are cut."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.bounds import InputBound
from services.proxy.dialects.openai_chunks import read_chunk
from services.proxy.dialects.openai_usage import read_usage
from services.proxy.estimate import tokens_of
from services.proxy.metering import Meter, StreamMeter


def bound(text: str = "hello there") -> InputBound:
    made = InputBound()
    made.add_text(text)
    return made


def meter(*, asked: bool = False, limit: int | None = None, choices: int = 1) -> StreamMeter:
    return StreamMeter(usage_asked=asked, bound=bound(), limit=limit, choices=choices)


def chunk(delta: dict | None = None, **extra: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": None}]
    return b"data: " + json.dumps({"id": "c", "model": "m-1", "choices": choices, **extra}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
DONE = b"data: [DONE]\n\n"
WHOLE = b"".join(
    [chunk({"role": "assistant"}), *(chunk({"content": "w\u00f6rd "}) for _ in range(4)), chunk(None, usage=USAGE), DONE]
)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=20), st.booleans())
def test_the_meter_counts_and_passes_the_same_however_the_bytes_are_cut(cuts: list[int], asked: bool) -> None:
    places = sorted({0, len(WHOLE), *cuts})
    measured = meter(asked=asked)
    passed = b"".join(measured.feed(WHOLE[a:b]) for a, b in itertools.pairwise(places))
    assert measured.last == DONE
    assert passed == (WHOLE if asked else WHOLE.replace(chunk(None, usage=USAGE), b"")).removesuffix(DONE)
    reading = measured.reading()
    assert reading.items == {"input": 9, "output": 4}
    assert reading.source == pb.USAGE_SOURCE_PROVIDER
    assert measured.response_model == "m-1"


def test_an_event_passes_as_soon_as_it_is_whole() -> None:
    measured = meter()
    event = chunk({"content": "x"})
    assert measured.feed(event[:-1]) == b""
    assert measured.feed(event[-1:]) == event


def test_a_stream_without_usage_is_estimated_by_its_text_and_not_below_its_deltas() -> None:
    measured = meter()
    for _ in range(20):
        measured.feed(chunk({"content": "a"}))
    reading = measured.reading()
    assert reading.source == pb.USAGE_SOURCE_ESTIMATED
    assert reading.items["output"] == 20
    assert reading.items["input"] == bound().estimate()


def test_an_estimate_is_never_above_the_limit_of_all_choices() -> None:
    measured = meter(limit=5, choices=2)
    measured.feed(chunk({"content": "word " * 100}))
    assert measured.reading().items["output"] == 10


def test_thinking_calls_of_tools_and_refusals_are_counted() -> None:
    for delta in (
        {"reasoning_content": "let me think about this"},
        {"reasoning": "let me think about this"},
        {"refusal": "let me think about this"},
        {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "let_me", "arguments": '{"think": "about this"}'}}]},
        {"content": [{"type": "text", "text": "let me think about this"}]},
    ):
        measured = meter()
        measured.feed(chunk(delta))
        assert 4 <= measured.reading().items["output"] <= 12, delta


def test_a_stream_that_breaks_off_after_a_cumulative_usage_counts_what_came_since() -> None:
    measured = meter()
    measured.feed(chunk({"content": "word "}, usage={"prompt_tokens": 9, "completion_tokens": 1}))
    assert measured.reading().source == pb.USAGE_SOURCE_PROVIDER
    for _ in range(3):
        measured.feed(chunk({"content": "word "}))
    reading = measured.reading()
    assert reading.source == pb.USAGE_SOURCE_ESTIMATED
    assert reading.items == {"input": 9, "output": 4}


@pytest.mark.parametrize(
    "line", [b"data: 5\n\n", b'data: "x"\n\n', b"data: {\n\n", b"data: []\n\n", b'data: {"choices": 7}\n\n']
)
def test_events_that_are_no_chunks_pass_and_count_nothing(line: bytes) -> None:
    measured = meter()
    assert measured.feed(line) == line
    assert measured.reading().items["output"] == 0


def test_a_chunk_with_odd_types_is_still_read() -> None:
    read = read_chunk(b'{"choices":[{"delta":"x","finish_reason":"stop"},5],"usage":{"prompt_tokens":1},"model":7}')
    assert read is not None
    assert bytes(read.usage) == b'{"prompt_tokens":1}'


def test_an_end_without_a_blank_line_or_without_done_is_taken() -> None:
    measured = meter()
    assert measured.feed(chunk({"content": "x"}) + b"data: [DONE]") == chunk({"content": "x"})
    assert measured.end() == b""
    assert measured.last == b"data: [DONE]"
    measured = meter()
    measured.feed(b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}')
    assert measured.end().startswith(b"data: ")
    assert measured.finished


def test_a_fragment_of_a_completion_is_estimated_by_its_content() -> None:
    measured = Meter(bound=bound(), limit=None, choices=1)
    measured.count_fragment(b'{"id":"x","choices":[{"message":{"role":"assistant","content":"' + b"word " * 50)
    assert 45 <= measured.reading().items["output"] <= 60


# -- the usage object ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "items"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0}, {"input": 0, "output": 0}),
        ({"input_tokens": 3, "output_tokens": 4}, {"input": 3, "output": 4}),
        ({"prompt_tokens": 3.0, "completion_tokens": 4}, {"input": 3, "output": 4}),
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 2}},
            {"input": 9, "cached_input": 5, "input_audio": 2, "output": 4},
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 100}},
            {"input": 109, "cached_input": 100, "output": 4},
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 40, "completion_tokens_details": {"reasoning_tokens": 30}},
            {"input": 9, "output": 40, "reasoning": 30},
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 40,
                "total_tokens": 79,
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            {"input": 9, "output": 70, "reasoning": 30},
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 30}},
            {"input": 9, "output": 34, "reasoning": 30},
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "prompt_cache_hit_tokens": 8},
            {"input": 9, "cached_input": 8, "output": 4},
        ),
        ({"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": None, "cost": 0.1}, {"input": 9, "output": 4}),
    ],
)
def test_usage_is_read_in_the_shapes_that_providers_write(usage: dict, items: dict[str, int]) -> None:
    read = read_usage(json.dumps(usage).encode())
    assert read is not None
    assert (read.items, read.whole, read.plausible) == (items, True, True)


@pytest.mark.parametrize("count", [-1, "12", 1.5, 10**18, True, [], {}])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_a_number_that_nobody_can_mean_is_noticed(count: object, name: str) -> None:
    read = read_usage(json.dumps({**USAGE, name: count}).encode())
    assert read is not None
    assert not read.plausible


def test_numbers_that_nobody_can_mean_are_reported_at_the_hold_as_the_providers() -> None:
    measured = meter()
    measured.feed(chunk({"content": "a"}) + chunk(None, usage={**USAGE, "completion_tokens": -1}))
    reading = measured.reading()
    assert (reading.outcome, reading.source, reading.items) == (pb.OUTCOME_SETTLED_AT_HOLD, pb.USAGE_SOURCE_PROVIDER, {})
    assert "-1" in reading.usage_text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        lambda inner: st.dictionaries(
            st.sampled_from(
                [
                    *USAGE,
                    "prompt_tokens_details",
                    "completion_tokens_details",
                    "cached_tokens",
                    "reasoning_tokens",
                    "audio_tokens",
                ]
            ),
            inner,
        ),
        max_leaves=12,
    )
)
def test_no_usage_object_makes_a_count_that_the_ledger_would_refuse(usage: object) -> None:
    read = read_usage(json.dumps(usage).encode())
    if read is not None and read.plausible:
        assert all(0 <= count <= 2 * 10**9 for count in read.items.values())
        for part, of in (
            ("cached_input", "input"),
            ("input_audio", "input"),
            ("reasoning", "output"),
            ("output_audio", "output"),
        ):
            assert read.items.get(part, 0) <= read.items.get(of, 0)


# -- estimates: the second numbers are o200k's, counted once with bpe-openai -------------------------------------------------

ENGLISH = (
    "The old lighthouse keeper had not spoken to anyone for three weeks when the storm finally broke. He climbed the narrow "
    "stairs every evening, lit the lamp, and watched the grey water roll toward the rocks. Nobody in the village remembered "
    "when he had arrived, but everyone agreed that the harbour had been safer since then."
)
GERMAN = (
    "Der alte Leuchtturmw\u00e4rter hatte seit drei Wochen mit niemandem gesprochen, als der Sturm endlich losbrach. Jeden "
    "Abend stieg er die schmale Treppe hinauf, z\u00fcndete die Lampe an und beobachtete, wie das graue Wasser gegen die "
    "Felsen rollte. Die Datenschutzgrundverordnung verpflichtet Unternehmen zur Benachrichtigung der Aufsichtsbeh\u00f6rde."
)
CHINESE = (
    "\u8001\u706f\u5854\u770b\u5b88\u4eba\u5df2\u7ecf\u4e09\u4e2a\u661f\u671f\u6ca1\u6709\u548c\u4efb\u4f55\u4eba\u8bf4\u8bdd"
)
CODE = '''def retry_headers(error: BaseException) -> dict[str, str]:
    """When and whether to try again."""
    headers: dict[str, str] = {}
    if row(error).final:
        headers["x-should-retry"] = "false"
    delay = error.retry_after if isinstance(error, GatewayError) else None
    if delay is not None:
        headers["Retry-After"] = str(max(1, math.ceil(delay)))
    return headers
'''
JSON_TEXT = json.dumps([{"id": n, "name": f"user {n}", "balance": n * 13.57, "tags": ["alpha", "beta"]} for n in range(10)])


@pytest.mark.parametrize(
    ("text", "tokens"), [(ENGLISH, 62), (GERMAN, 81), (CHINESE, 15), (CODE, 97), (JSON_TEXT, 325), ("word " * 200, 201)]
)
def test_an_estimate_is_within_a_fifth(text: str, tokens: int) -> None:
    assert abs(tokens_of(text) - tokens) <= tokens / 5


def test_a_long_text_is_estimated_by_samples_and_quickly() -> None:
    text = ENGLISH * 200
    assert abs(tokens_of(text) - 200 * tokens_of(ENGLISH)) <= 200 * tokens_of(ENGLISH) / 10
    assert tokens_of("") == 0
    assert tokens_of("x") == 1
    assert tokens_of(Path(__file__).read_text()) > 1000


# -- JSON that a strict reader refuses ----------------------------------------------------------------------------------------

ODD = [
    b'"\\ud83d"',  # half of an emoji that is split over two deltas
    b'"\\ude00 and more"',
    b'"\xff\xfe"',
    b'"a\x01b"',
    b'"x", "logprob": 1e999',
    b'"x", "logprob": -Infinity',
    b'"x", "logprob": NaN',
    b'"x", "seed": ' + b"9" * 5000,
]


@pytest.mark.parametrize("content", ODD)
def test_a_chunk_that_a_strict_reader_refuses_passes_and_is_counted(content: bytes) -> None:
    measured = meter()
    event = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":' + content + b"}}]}\n\n"
    assert measured.feed(event) == event
    assert measured.feed(b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4},"x":1e999}\n\n') == b""
    reading = measured.reading()
    assert reading.source == pb.USAGE_SOURCE_PROVIDER
    assert reading.items == {"input": 9, "output": 4}


@pytest.mark.parametrize("content", ODD)
def test_a_completion_that_a_strict_reader_refuses_is_read_with_its_usage(content: bytes) -> None:
    usage = b'"usage":{"prompt_tokens":9,"completion_tokens":4}'
    read = read_chunk(b'{"model":"m","choices":[{"message":{"content":' + content + b"}}]," + usage + b"}")
    assert read is not None
    measured = Meter(bound=bound(), limit=None, choices=1)
    measured.count(read)
    assert measured.reading().items == {"input": 9, "output": 4}


def test_a_usage_that_no_float_holds_is_a_number_that_nobody_can_mean() -> None:
    for count in ("1e999", "-1e999", "9" * 5000):
        read = read_usage(f'{{"prompt_tokens":9,"completion_tokens":{count}}}'.encode())
        assert read is not None
        assert not read.plausible


@pytest.mark.parametrize("data", [b"", b"{", b"<html>", b'{"a":1}}', b"[" * 100_000])
def test_what_is_no_json_is_no_chunk(data: bytes) -> None:
    assert read_chunk(data) is None


def test_a_usage_from_before_the_text_is_not_the_last_word() -> None:
    measured = meter()
    measured.feed(chunk({"role": "assistant"}, usage={"prompt_tokens": 9, "completion_tokens": 1}))
    for _ in range(30):
        measured.feed(chunk({"content": "word "}))
    measured.feed(DONE)
    reading = measured.reading()
    assert reading.source == pb.USAGE_SOURCE_ESTIMATED
    assert reading.items == {"input": 9, "output": 31}
