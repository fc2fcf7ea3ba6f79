"""A middleware for aiohttp: a handler runs when the gateway grants the caller's client token a call, which is settled after it.

    app = web.Application(middlewares=[guard(gateway, terms)])

    async def terms(request):                 # which calls cost what; None: this route is open
        if request.path != "/summaries":
            return None
        return {"model": "summary", "input_text": await request.text()}

    async def summarize(request):
        call = call_of(request)
        …
        call.usage(input_tokens=…, output_tokens=…)

The caller sends `Authorization: Bearer <token>`. A refusal is answered with the status that the gateway's own edge has for it,
and with the same error object. What the handler's end charges: see `AsyncCall`. Needs aiohttp, which the client does not.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.client.aio import AsyncCall, AsyncGateway
from gateway.client.guarding import token_of, told
from gateway.client.terms import ModelTerms
from gateway.errors import GatewayError
from gateway.http_errors import error_object, retry_headers, status

TermsOf = Callable[[web.Request], Awaitable[ModelTerms | None]]

CALL: Final = web.RequestKey("gateway_call", AsyncCall)


def guard(gateway: AsyncGateway, terms_of: TermsOf) -> Middleware:
    """The middleware.

    terms_of: the model and the bounds of a request, as `AsyncGateway.call` takes them; None lets it through unasked.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        terms = await terms_of(request)
        if terms is None:
            return await handler(request)
        async with AsyncExitStack() as stack:
            try:
                token = token_of(request.headers.get("Authorization"))
                call = await stack.enter_async_context(gateway.call(token, **terms))
            except GatewayError as error:
                return refusal(told(error))
            request[CALL] = call
            response = await handler(request)
            if not response.prepared:
                response.headers["x-request-id"] = call.request_id
            return response

    return guarded


def call_of(request: web.Request) -> AsyncCall:
    """The call that the guard opened for this request. Raises KeyError on a route that it lets through unasked."""
    call: AsyncCall = request[CALL]
    return call


def refusal(error: GatewayError) -> web.Response:
    """The answer that tells of an error, as the gateway's own edge gives it: status, retry headers, and the error object."""
    body = json.dumps({"error": error_object(error)}, ensure_ascii=False).encode("utf-8", "replace")
    return web.Response(status=status(error), body=body, headers={"Content-Type": "application/json", **retry_headers(error)})
