"""Requests whose framing the parser takes and another server may read in another way."""

from __future__ import annotations

import pytest

from tests.proxy.edge_harness import TOKEN, running_edge

BODY = b"2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("version", "coding"),
    [("HTTP/1.1", "gzip, chunked"), ("HTTP/1.1", "identity, chunked"), ("HTTP/0.9", ""), ("HTTP/2.0", ""), ("HTTP/3.1", "")],
)
async def test_a_request_of_another_framing_is_refused_and_the_connection_ends(version, coding):
    async with running_edge() as edge:
        head = f"POST /v1/chat/completions {version}\r\nHost: edge\r\nAuthorization: Bearer {TOKEN}\r\n"
        framing = f"Transfer-Encoding: {coding}\r\n\r\n".encode() + BODY if coding else b"Content-Length: 2\r\n\r\n{}"
        marker = b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n"
        answer = await edge.raw(head.encode() + framing + marker)
    assert answer.split(b" ", 2)[1] == b"400"
    assert answer.count(b"HTTP/") == 1
