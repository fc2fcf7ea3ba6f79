"""Every field of a chat completion with every JSON type: never a 5xx, and nothing in the log that tells of a failure."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.proxy.edge_harness import TOKEN, head, running_edge, status_of
from tests.support.json_types import VALUES

FULL: dict[str, Any] = {
    "model": "mock",
    "messages": [
        {"role": "system", "content": "x", "name": "n"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                {"type": "file", "file": {"file_id": "f", "filename": "n"}},
            ],
        },
        {
            "role": "assistant",
            "audio": {"id": "a"},
            "refusal": "r",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ],
    "stream": False,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "n": 1,
    "best_of": 1,
    "models": None,
    "fallbacks": None,
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}],
    "functions": [{"name": "f"}],
    "tool_choice": "auto",
    "service_tier": "auto",
    "modalities": ["text"],
    "audio": {"voice": "v", "format": "wav"},
    "thinking": {"type": "enabled", "budget_tokens": 5},
    "reasoning": {"effort": "low", "max_tokens": 5},
    "web_search_options": {},
    "plugins": [],
    "prediction": {"type": "content", "content": "x"},
    "metadata": {"a": "b"},
    "logit_bias": {"1": 1},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    "stop": ["x"],
    "temperature": 1,
    "seed": 1,
    "user": "u",
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


def changed(path: tuple[Any, ...], raw: str) -> bytes:
    """The full body with the value at this path written in this way."""
    if not path:
        return raw.encode()
    body = copy.deepcopy(FULL)
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "\x00here\x00"
    return json.dumps(body).replace('"\\u0000here\\u0000"', raw).encode()


async def test_no_json_type_in_any_field_is_more_than_a_wrong_request(capfd: pytest.CaptureFixture[str]) -> None:
    found: dict[int, int] = {}
    async with running_edge() as edge:
        for number, path in enumerate(places(FULL)):
            for raw in VALUES:
                edge.auth.tokens[TOKEN].soft = (number + len(raw)) % 3 != 0
                async with edge.post(None, raw=changed(path, raw)) as response:
                    text = await response.text()
                assert response.status < 500, (path, raw, text)
                found[response.status] = found.get(response.status, 0) + 1
        assert found[400] > 100
        assert found[200] > 100
    log = capfd.readouterr().err
    assert "Traceback" not in log
    assert "request_failed" not in log


async def test_types_are_refused_alike_without_a_token(capfd: pytest.CaptureFixture[str]) -> None:
    async with running_edge() as edge:
        for body in (b'{"service_tier":[]}', b'{"model":"mock","messages":[{}],"tools":[{"type":[]}],"service_tier":{}}'):
            request = head("POST", "/v1/chat/completions", f"Content-Length: {len(body)}", "Connection: close")
            request = b"\r\n".join(line for line in request.split(b"\r\n") if not line.startswith(b"Authorization"))
            assert status_of(await edge.raw(request + body)) == 401
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (rb'{"model":"m","messages":[{"role":"user","content":"\ud83d"}]}', "messages[0].content"),
        (rb'{"model":"m","messages":[{},{"content":[{"type":"text","text":"a\ude00b"}]}]}', "messages[1].content[0].text"),
        (rb'{"model":"m\uD83D\uD83D","messages":[{"content":"x"}]}', "model"),
        (rb'{"model":"m","messages":[{"na\udfffme":1e308}],"x":1}', "messages[0].na?me"),
    ],
)
async def test_half_of_a_surrogate_pair_is_refused_with_the_field_that_holds_it(raw: bytes, name: str) -> None:
    async with running_edge() as edge:
        async with edge.post(None, raw=raw) as response:
            error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, name)
        assert f"`{name}` holds half of a surrogate pair" in error["message"]
        assert not edge.provider.calls


async def test_a_whole_pair_is_a_character() -> None:
    raw = rb'{"model":"mock","messages":[{"role":"user","content":"\ud83d\ude00 \\ud83d"}]}'
    async with running_edge() as edge, edge.post(None, raw=raw) as response:
        assert response.status == 200


PUT_IN = (b"\\ud83d", b"\\u0000", b"1e999", b"NaN", b"null,", b'"a":1,', b"\xef\xbb\xbf")


def mutated(chance: random.Random, body: bytes) -> bytes:
    """The body with a few bytes changed, left out, doubled or put in."""
    found = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[place] = chance.choice(b'{}[],:"\\0eE.-+tnf \xff\x00\xc3\xed')
            case 1:
                del found[place : place + chance.choice((1, 1, 10))]
            case 2:
                found[place:place] = found[place : place + chance.choice((1, 20))]
            case 3:
                found[place:place] = chance.choice(
                    (b"\\ud83d", b"\\u0000", b"1e999", b"NaN", b"null,", b'"a":1,', b"\xef\xbb\xbf")
                )
    return bytes(found)


async def test_a_body_with_bytes_changed_is_refused_or_is_valid_and_never_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    chance, plain = random.Random(7), json.dumps(FULL | {"model": "mock", "service_tier": "auto"}).encode()
    async with running_edge() as edge:
        edge.auth.tokens[TOKEN].soft = True
        for _ in range(2_000):
            body = mutated(chance, plain)
            passed = len(edge.provider.calls)
            async with edge.post(None, raw=body) as response:
                error = {} if response.status == 200 else (await response.json())["error"]
            assert response.status in {200, 400, 404}, (response.status, error, body)
            if response.status == 400:
                assert len(edge.provider.calls) == passed
                assert not {"Traceback", "msgspec", "services.", ".py"} & set(error["message"].split())
            elif response.status == 200:
                json.loads(body)
    assert "request_failed" not in capfd.readouterr().err
