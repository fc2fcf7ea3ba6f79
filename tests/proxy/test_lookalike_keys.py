"""Keys that differ from a checked one in case only: no provider that reads keys as Go does serves what was not checked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.proxy.lookalikes import fold
from tests.proxy.edge_harness import Edge, running_edge


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running_edge() as running:
        yield running


def as_go_reads(body: bytes, *names: str) -> Any:
    """A member as Go's encoding/json finds it: of the keys that match when folded, the last one counts."""
    found = json.loads(body)
    for name in names:
        matching = [value for key, value in found.items() if fold(key) == name] if isinstance(found, dict) else []
        found = matching[-1] if matching else None
    return found


MESSAGE = {"role": "user", "content": "x"}
GOOD = {"model": "mock", "messages": [MESSAGE]}
# What is beside a good body, and the name in the refusal.
ALIKE: list[tuple[dict[str, Any], str]] = [
    ({"Model": "b"}, "Model"),
    ({"MODEL": "b"}, "MODEL"),
    ({"STREAM": True}, "STREAM"),
    ({"\u017ftream": True}, "\u017ftream"),
    ({"max_to\u212aens": 10**6}, "max_to\u212aens"),
    ({"MAX_TOKENS": 10**6}, "MAX_TOKENS"),
    ({"max_tokens": 5, "Max_Tokens": 10**6}, "Max_Tokens"),
    ({"Max_Completion_Tokens": 10**6}, "Max_Completion_Tokens"),
    ({"N": 100}, "N"),
    ({"Best_of": 100}, "Best_of"),
    ({"Models": ["b"]}, "Models"),
    ({"Fallbacks": ["b"]}, "Fallbacks"),
    ({"Messages": []}, "Messages"),
    ({"Tools": [{"type": "web_search"}]}, "Tools"),
    ({"Functions": []}, "Functions"),
    ({"Service_Tier": "priority"}, "Service_Tier"),
    ({"Modalities": ["audio"]}, "Modalities"),
    ({"Audio": {}}, "Audio"),
    ({"Web_Search_Options": {}}, "Web_Search_Options"),
    ({"Plugins": [1]}, "Plugins"),
    ({"Prediction": {}}, "Prediction"),
    ({"Thinking": {"budget_tokens": 5}}, "Thinking"),
    ({"Reasoning": {"max_tokens": 5}}, "Reasoning"),
    ({"Stream_Options": {}}, "Stream_Options"),
    ({"stream": True, "stream_options": {"Include_Usage": False}}, "stream_options.Include_Usage"),
    ({"stream": True, "stream_options": {"include_usage": True, "INCLUDE_USAGE": False}}, "stream_options.INCLUDE_USAGE"),
    ({"thinking": {"Budget_Tokens": 10**6}}, "thinking.Budget_Tokens"),
    ({"reasoning": {"Max_Tokens": 10**6}}, "reasoning.Max_Tokens"),
    ({"tools": [{"type": "function", "Type": "web_search"}]}, "tools[].Type"),
    ({"messages": [{**MESSAGE, "Content": "y"}]}, "messages[].Content"),
    ({"messages": [{**MESSAGE, "Audio": {"id": "a"}}]}, "messages[].Audio"),
    ({"messages": [{"content": [{"type": "text", "Type": "image_url"}]}]}, "Type"),
    ({"messages": [{"content": [{"type": "text", "text": "x", "Image_URL": {"url": "https://a"}}]}]}, "Image_URL"),
    ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:,", "URL": "https://a"}}]}]}, "URL"),
    ({"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": "A", "Data": "B"}}]}]}, "Data"),
    ({"messages": [{"content": [{"type": "text", "text": "x", "File_ID": "f"}]}]}, "File_ID"),
    ({"messages": [{"content": [{"type": "x", "Video_Url": "https://a"}]}]}, "Video_Url"),
]


@pytest.mark.parametrize(("more", "name"), ALIKE, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
async def test_a_key_that_only_looks_like_a_checked_one_is_refused_by_name(
    edge: Edge, more: dict[str, Any], name: str, first: bool
) -> None:
    good = {key: value for key, value in GOOD.items() if key not in more}
    async with edge.post({**more, **good} if first else {**good, **more}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (400, "invalid_request", name)
    assert f"`{name}`" in error["message"]
    assert not edge.provider.calls
    assert not edge.auth.admitted


@pytest.mark.parametrize("key", ["MODEL", "\\u004dodel", "mode\\u006C"])
async def test_a_model_that_is_only_named_in_another_case_is_refused(edge: Edge, key: str) -> None:
    async with edge.post(None, raw=b'{"%s":"mock-b","messages":[{}]}' % key.encode()) as response:
        status, served = response.status, [as_go_reads(call.body.encode(), "model") for call in edge.provider.calls]
    assert (status, served) == ((200, ["mock-b"]) if "6C" in key else (400, []))


@pytest.mark.parametrize(
    "more",
    [
        {"Temperature": 1, "User": "x", "x": {"Model": "b", "N": 5}},
        {
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"properties": {"Type": {}, "URL": {}, "N": {}}}}}
            ]
        },
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"URL": "a", "Type": 1}}}]}
            ]
        },
        {"messages": [{"role": "user", "content": "x", "Name": "y"}]},
        {"metadata": {"Model": "b"}, "response_format": {"Type": "x"}},
        {"m\u00f6del": 1, "\u017f": 1, "\u212a": 1},
    ],
)
async def test_keys_that_nobody_checks_may_be_written_as_one_likes(edge: Edge, more: dict[str, Any]) -> None:
    async with edge.post({**GOOD, **more}) as response:
        assert response.status == 200
    body = edge.provider.calls[0].body.encode()
    assert as_go_reads(body, "model") == "mock"
    assert as_go_reads(body, "n") is None


def test_folding_knows_the_letters_beyond_ascii_that_fold_to_ascii() -> None:
    assert fold("\u017fTREAM") == "stream"
    assert fold("max_to\u212aens") == "max_tokens"
    assert fold("M\u00d6DEL") == "m\u00f6del"
