"""What a request line may ask for, in the forms that HTTP has for it."""

from __future__ import annotations

import json

import pytest

from services.proxy.protocol import origin_form
from tests.proxy.edge_harness import body_of, chat, head, running_edge, status_of


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "http://edge/v1/models", 200),
        ("GET", "HTTP://other.example:99/v1/models?x=1", 200),
        ("GET", "https://[::1]/v1/models", 200),
        ("HEAD", "http://edge", 200),
        ("GET", "http://edge/v1/../v1/models", 404),
        ("GET", "http://edge//v1/models", 404),
        ("GET", "http://user:secret@edge/v1/models", 400),
        ("GET", "ftp://edge/v1/models", 400),
        ("GET", "edge/v1/models", 400),
        ("CONNECT", "other.example:443", 400),
    ],
)
async def test_the_absolute_form_is_taken_and_leads_nowhere_else(method: str, target: str, status: int) -> None:
    async with running_edge() as edge:
        answer = await edge.raw(head(method, target, "Connection: close"))
        assert status_of(answer) == status, answer
        assert b"secret" not in answer
        assert edge.provider.calls == []


async def test_a_call_in_absolute_form_is_made_once_and_the_connection_goes_on() -> None:
    async with running_edge() as edge:
        body = json.dumps(chat()).encode()
        one = head("POST", "http://edge/v1/chat/completions", f"Content-Length: {len(body)}") + body
        answer = await edge.raw(one + one + head("GET", "/nothing", "Connection: close"))
        assert answer.count(b"HTTP/1.1 200") == 2
        assert [call.path for call in edge.provider.calls] == ["/v1/chat/completions"] * 2


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"5\r\nhelloXX\r\n", b"-1\r\n", b"5;a=\x00\r\n", b"\xff\r\n", b"5\rhello"])
async def test_a_bad_chunk_of_a_request_is_a_400_at_once(chunks: bytes) -> None:
    async with running_edge() as edge:
        for good in (b"", b"1\r\n{\r\n"):
            sent = head("POST", "/v1/chat/completions", "Transfer-Encoding: chunked") + good + chunks
            answer = await edge.raw(sent, until=2.0)
            assert status_of(answer) == 400
            assert body_of(answer)["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://a/b?c#d", "/b?c#d"),
        ("http://a", "/"),
        ("http://a?b=/c", "/?b=/c"),
        ("http://a:1/b@c", "/b@c"),
        ("*", "*"),
        ("/http://a/b", "/http://a/b"),
        ("http://", "/"),
    ],
)
def test_the_path_of_a_target(target: str, path: str) -> None:
    assert origin_form(target) == path
