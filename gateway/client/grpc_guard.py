"""Guards for gRPC servicers: a method asks the gateway about the caller's client token before it runs, and is settled after it.

    class Summaries(SummariesServicer):
        @guarded(lambda self: self.gateway, lambda request: {"model": "summary", "input_text": request.text})
        def Summarize(self, request, context, call):
            call.usage(input_tokens=…, output_tokens=…)
            return SummarizeResponse(…)

The caller sends the token as the metadata entry `authorization: Bearer <token>`. `guarded` takes plain methods and generators,
`async_guarded` coroutines and asynchronous generators. A refusal ends the call before the method runs, with the code that
`docs/errors.md` has for its reason, the reason and the delay in the trailers. What the method's end charges: see `Call`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

import grpc

from gateway.client.aio import AsyncCall, AsyncGateway
from gateway.client.guarding import token_of, told
from gateway.client.sync import Call, Gateway
from gateway.client.terms import ModelTerms
from gateway.errors import GatewayError
from gateway.rpc.status import to_status

_S = TypeVar("_S")
_Q = TypeVar("_Q")
_A = TypeVar("_A")


def guarded(
    gateway_of: Callable[[_S], Gateway], terms_of: Callable[[_Q], ModelTerms]
) -> Callable[[Callable[[_S, _Q, grpc.ServicerContext, Call], _A]], Callable[[_S, _Q, grpc.ServicerContext], _A]]:
    """Guards a method of a servicer that runs on threads, unary or streaming its answer.

    gateway_of: the gateway of a servicer. terms_of: the model and the bounds of a request, as `Gateway.call` takes them.
    The method gets the call as its last argument.
    """

    def guard(method: Callable[[_S, _Q, grpc.ServicerContext, Call], _A]) -> Callable[[_S, _Q, grpc.ServicerContext], _A]:
        def enter(stack: ExitStack, servicer: _S, request: _Q, context: grpc.ServicerContext) -> Call:
            """The call, granted. A refusal ends the RPC."""
            try:
                return stack.enter_context(gateway_of(servicer).call(_token(context), **terms_of(request)))
            except GatewayError as error:
                code, details, trailers = to_status(told(error))
                context.set_trailing_metadata(trailers)
                context.abort(code, details)
                raise

        @functools.wraps(method)
        def run(servicer: _S, request: _Q, context: grpc.ServicerContext) -> _A:
            with ExitStack() as stack:
                return method(servicer, request, context, enter(stack, servicer, request, context))

        @functools.wraps(method)
        def stream(servicer: _S, request: _Q, context: grpc.ServicerContext) -> Iterator[Any]:
            with ExitStack() as stack:
                answers: Any = method(servicer, request, context, enter(stack, servicer, request, context))
                yield from answers

        wrapped: Any = stream if inspect.isgeneratorfunction(method) else run
        return wrapped  # type: ignore[no-any-return] # what a generator function gives is what the method gives

    return guard


def async_guarded(gateway_of: Callable[[Any], AsyncGateway], terms_of: Callable[[Any], ModelTerms]) -> Callable[[Any], Any]:
    """Guards a method of a servicer of `grpc.aio`, unary or streaming its answer.

    gateway_of: the gateway of a servicer. terms_of: the model and the bounds of a request, as `AsyncGateway.call` takes them.
    The method gets the call as its last argument.
    """

    def guard(method: Any) -> Any:
        async def enter(stack: AsyncExitStack, servicer: Any, request: Any, context: Any) -> AsyncCall:
            """The call, granted. A refusal ends the RPC."""
            try:
                return await stack.enter_async_context(gateway_of(servicer).call(_token(context), **terms_of(request)))
            except GatewayError as error:
                code, details, trailers = to_status(told(error))
                await context.abort(code, details, trailers)
                raise

        @functools.wraps(method)
        async def run(servicer: Any, request: Any, context: Any) -> Any:
            async with AsyncExitStack() as stack:
                return await method(servicer, request, context, await enter(stack, servicer, request, context))

        @functools.wraps(method)
        async def stream(servicer: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            async with AsyncExitStack() as stack:
                call = await enter(stack, servicer, request, context)
                async for answer in method(servicer, request, context, call):
                    yield answer

        return stream if inspect.isasyncgenfunction(method) else run

    return guard


def _token(context: Any) -> str:
    """The client token in a call's metadata. Raises TokenUnknown where there is none, or more than one."""
    values = {value for key, value in context.invocation_metadata() or () if key == "authorization"}
    return token_of(str(values.pop()) if len(values) == 1 else None)
