"""What stands around every method of a server: rights, the request's id in the log, errors as statuses, one log line.

Each method is wrapped once, when its service is added, so a call pays for one function and for no pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

from gateway.errors import GatewayError, Internal, Overloaded
from gateway.ids import is_canonical_uuid, uuid7
from gateway.process import logs
from gateway.process.log_floods import LogFloods
from gateway.rpc.access import Guard, Rule
from gateway.rpc.identity import caller_of
from gateway.rpc.status import to_status

REQUEST_ID: Final = "x-request-id"
"""The metadata entry with the request's id, one from the edge to the ledger."""

MAX_HELD_STREAMS: Final = 4
"""How many streams of one method may keep a thread for as long as their reader likes (reflection)."""

_log = logs.get_logger(__name__)

_OK: Final = grpc.StatusCode.OK

Behavior = Callable[[Any, grpc.ServicerContext], Any]
Observe = Callable[[str, str, float], None]
"""Told of each RPC that has ended: its full name, its code, the seconds that it took."""


def nobody(_method: str, _code: str, _seconds: float) -> None:
    """For a server whose RPCs nobody counts."""


class Streams:
    """The open streams that a stopping server ends by itself instead of waiting for them."""

    def __init__(self) -> None:
        self._open: dict[int, grpc.ServicerContext] = {}

    def add(self, context: grpc.ServicerContext) -> None:
        """Remembers a stream until it ends."""
        self._open[id(context)] = context

        def ended() -> None:
            self._open.pop(id(context), None)

        if not context.add_callback(ended):
            ended()

    def __len__(self) -> int:
        return len(self._open)

    def cut(self) -> None:
        """Ends them all."""
        for context in list(self._open.values()):
            context.cancel()


def wrap(
    method: str, handler: Any, rule: Rule, guard: Guard, streams: Streams, observe: Observe = nobody
) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler of a method with everything around it. Keeps how it reads and writes messages, and whether it streams."""
    floods = LogFloods(lambda **facts: _log.warning("rpcs_summarized", method=method, **facts))
    if handler.request_streaming and handler.response_streaming:
        held = _held(handler.stream_stream, streams)
        return grpc.stream_stream_rpc_method_handler(
            _streaming(method, held, rule, guard, observe, floods), handler.request_deserializer, handler.response_serializer
        )
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(
            _single(method, handler.stream_unary, rule, guard, observe, floods),
            handler.request_deserializer,
            handler.response_serializer,
        )
    if handler.response_streaming:
        behavior = handler.unary_stream
        if getattr(behavior, "experimental_non_blocking", False):
            wrapped: Any = _without_thread(method, behavior, rule, guard, streams, observe, floods)
        else:
            behavior = _cut_on_stop(behavior, streams) if rule.cut_on_stop else behavior
            wrapped = _streaming(method, behavior, rule, guard, observe, floods)
        return grpc.unary_stream_rpc_method_handler(wrapped, handler.request_deserializer, handler.response_serializer)
    return grpc.unary_unary_rpc_method_handler(
        _single(method, handler.unary_unary, rule, guard, observe, floods),
        handler.request_deserializer,
        handler.response_serializer,
    )


def _single(method: str, behavior: Behavior, rule: Rule, guard: Guard, observe: Observe, floods: LogFloods) -> Behavior:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        started = time.perf_counter()
        _bind_request_id(context)
        try:
            guard.enter(method, rule, context)
            response = behavior(request, context)
        except Exception as error:  # the border: whatever it is becomes a status
            _fail(method, context, error, started, observe, floods)
        observe(method, "OK", time.perf_counter() - started)
        if logs.debugging():
            _log.debug("rpc", method=method, code="OK", duration_ms=_milliseconds(started))
        return response

    return call


def _streaming(method: str, behavior: Behavior, rule: Rule, guard: Guard, observe: Observe, floods: LogFloods) -> Behavior:
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        started = time.perf_counter()
        _bind_request_id(context)
        try:
            guard.enter(method, rule, context)
            yield from behavior(request, context)
        except Exception as error:  # the border: whatever it is becomes a status
            _fail(method, context, error, started, observe, floods)
        observe(method, "OK", time.perf_counter() - started)
        if logs.debugging():
            _log.debug("rpc", method=method, code="OK", duration_ms=_milliseconds(started))

    return call


def _without_thread(
    method: str, behavior: Any, rule: Rule, guard: Guard, streams: Streams, observe: Observe, floods: LogFloods
) -> Any:
    """For a stream whose servicer pushes its messages, such as health's Watch: it keeps no thread while it waits."""

    def call(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        started = time.perf_counter()
        try:
            guard.enter(method, rule, context)
            streams.add(context)
            behavior(request, context, send)
        except Exception as error:  # the border: whatever it is becomes a status
            _fail(method, context, error, started, observe, floods)

    call.experimental_non_blocking = True  # type: ignore[attr-defined] # how grpc marks such a function
    return call


def _cut_on_stop(behavior: Behavior, streams: Streams) -> Behavior:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        streams.add(context)
        return behavior(request, context)

    return call


def _held(behavior: Behavior, streams: Streams) -> Behavior:
    own = Streams()

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        if len(own) >= MAX_HELD_STREAMS:
            raise Overloaded(f"{MAX_HELD_STREAMS} such streams are open already; try again later", retry_after=1.0)
        own.add(context)
        streams.add(context)
        return behavior(request, context)

    return call


def _bind_request_id(context: grpc.ServicerContext) -> None:
    """Puts the request's id into the log lines of this call. gRPC runs each call in a context of its own: nothing to undo."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and is_canonical_uuid(value):
            logs.bind(request_id=value)
            return


def _request_id(context: grpc.ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and is_canonical_uuid(value):
            return value
    return uuid7()


def _fail(
    method: str, context: grpc.ServicerContext, error: Exception, started: float, observe: Observe, floods: LogFloods
) -> None:
    """Ends a call with the status of an error. Always raises."""
    ended: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined] # the stubs leave it out
    if isinstance(error, grpc.RpcError) or ended not in {None, _OK}:
        observe(method, (ended or grpc.StatusCode.CANCELLED).name, time.perf_counter() - started)
        raise error  # the caller went away, or the servicer ended the call itself
    caller = caller_of(context).name
    duration = _milliseconds(started)
    if isinstance(error, GatewayError) and error.reason != Internal.reason:
        told = error
        if floods.admits(told.reason, told.reason):
            _log.warning(
                "rpc",
                method=method,
                code=to_status(told)[0].name,
                reason=told.reason,
                caller=caller,
                duration_ms=duration,
                message=told.message,
            )
    else:
        request_id = _request_id(context)
        told = Internal("internal error", metadata={"request_id": request_id})
        _log.error(
            "rpc", method=method, code="INTERNAL", request_id=request_id, caller=caller, duration_ms=duration, exc_info=error
        )
    code, details, trailers = to_status(told)
    observe(method, code.name, time.perf_counter() - started)
    context.set_trailing_metadata(trailers)
    context.abort(code, details)


def _milliseconds(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
