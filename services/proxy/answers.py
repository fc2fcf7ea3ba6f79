"""Answers that are not errors: JSON with the headers that every answer carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import Payload, web
from aiohttp.abc import AbstractStreamWriter

from services.proxy.errors import SERVER_NAME

LARGE: Final = 16 * 1024
"""Bytes of a body from which a copy costs more than a second write."""

_encode = msgspec.json.Encoder().encode


class _Uncopied(Payload):
    """A body that is sent behind the head and not together with it.

    aiohttp would join the two, in a copy for each caller: those who never read would hold one each.
    """

    _value: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Writes head and body."""
        writer.send_headers()
        await writer.write(self._value)


def encode(value: Any) -> bytes:
    """A value as JSON. What never changes is encoded once, and sent with `raw_answer`."""
    return _encode(value)


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer whose body is this value as JSON."""
    return raw_answer(_encode(value), status=status, headers=headers)


def raw_answer(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer whose body is JSON already."""
    sent = body if len(body) < LARGE else _Uncopied(body)
    response = web.Response(status=status, body=sent, headers={"Content-Type": "application/json", "Server": SERVER_NAME})
    if headers:
        response.headers.update(headers)
    return response
