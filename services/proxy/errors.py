"""Us to the caller: an error as a body, an answer, or a stream's last event. `gateway/http_errors.py` has each reason's row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from aiohttp import web

from gateway.errors import RateLimited
from gateway.http_errors import error_object, retry_headers, status
from services.proxy.rate_headers import of_refusal

SERVER_NAME = "gateway"


def body(error: BaseException) -> bytes:
    """The body of an answer that tells of an error."""
    return json.dumps({"error": error_object(error)}, ensure_ascii=False).encode("utf-8", "replace")


def event(error: BaseException) -> bytes:
    """The last server-sent event of a stream that cannot go on."""
    return b"data: " + body(error) + b"\n\n"


def let_go(error: BaseException | None) -> None:
    """Takes the frames off an error that was answered, and off those that led to it.

    A frame that holds an error which holds the frame is freed by the collector alone, which comes seldom here, and so is the
    request's body in it: 60 MiB of each refused request of 30 MB.
    """
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def answer(
    error: BaseException,
    *,
    request_id: str = "",
    budget_status: Literal[402, 429] = 402,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """The whole answer to a caller: status, headers, error object.

    request_id: goes out as `x-request-id` and `request-id`; empty: the edge sets it later.
    headers: further ones, such as `Allow`.
    """
    response = web.Response(
        status=status(error, budget_status),
        body=body(error),
        headers={"Content-Type": "application/json", "Server": SERVER_NAME},
    )
    response.headers.update(retry_headers(error))
    if isinstance(error, RateLimited):
        response.headers.update(of_refusal(error))
    if request_id:
        response.headers["x-request-id"] = response.headers["request-id"] = request_id
    if headers:
        response.headers.update(headers)
    return response
