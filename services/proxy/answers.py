"""Answers that are not errors: JSON with the headers that every answer carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from services.proxy.errors import SERVER_NAME

_encode = msgspec.json.Encoder().encode


def encode(value: Any) -> bytes:
    """A value as JSON. What never changes is encoded once, and sent with `raw_answer`."""
    return _encode(value)


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer whose body is this value as JSON."""
    return raw_answer(_encode(value), status=status, headers=headers)


def raw_answer(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer whose body is JSON already."""
    response = web.Response(status=status, body=body, headers={"Content-Type": "application/json", "Server": SERVER_NAME})
    if headers:
        response.headers.update(headers)
    return response
