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
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway import errors
from gateway.client.aio import AsyncCall, AsyncGateway
from gateway.client.guarding import token_of, told
from gateway.client.terms import ModelTerms
from gateway.errors import GatewayError

TermsOf = Callable[[web.Request], Awaitable[ModelTerms | None]]

CALL: Final = web.RequestKey("gateway_call", AsyncCall)

# Status and code of each reason that a caller can meet, as at the gateway's own edge.
STATUSES: Final[Mapping[str, tuple[int, str]]] = {
    errors.Refusal.reason: (403, "refused"),
    errors.TokenUnknown.reason: (401, "invalid_api_key"),
    errors.TokenDisabled.reason: (401, "token_disabled"),
    errors.TokenExpired.reason: (401, "token_expired"),
    errors.ModelNotAllowed.reason: (403, "model_not_allowed"),
    errors.IpNotAllowed.reason: (403, "ip_not_allowed"),
    errors.BudgetExhausted.reason: (402, "insufficient_quota"),
    errors.RequestExceedsBudget.reason: (402, "request_exceeds_budget"),
    errors.BudgetReserved.reason: (429, "budget_reserved"),
    errors.ModelNotPriced.reason: (402, "model_not_priced"),
    errors.UnboundedRequest.reason: (400, "unbounded_request"),
    errors.RateLimited.reason: (429, "rate_limit_exceeded"),
    errors.RequestWithdrawn.reason: (503, "request_withdrawn"),
    errors.AuthUnavailable.reason: (503, "auth_unavailable"),
    errors.Overloaded.reason: (503, "overloaded"),
}


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
    """The answer that tells of an error: status, `Retry-After`, and the error object of the gateway's own edge."""
    status, code = STATUSES.get(error.reason, (500, "internal_error"))
    kind = "server_error" if status >= 500 else "insufficient_quota" if status == 402 else "invalid_request_error"
    headers = {"Content-Type": "application/json"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    body = {"error": {"message": error.message, "type": kind, "param": None, "code": code}}
    return web.Response(status=status, text=json.dumps(body, ensure_ascii=False), headers=headers)
