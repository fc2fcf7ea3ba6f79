"""Errors across gRPC: a `GatewayError` becomes a status with trailers, and the same error again on the other side.

Trailers: `reason`; `retry_after` in seconds; `metadata-bin`, a JSON object of texts. The message is the status's details.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import grpc
import grpc.aio

from gateway import errors
from gateway.errors import GatewayError

Trailers = tuple[tuple[str, str | bytes], ...]

_Code = grpc.StatusCode

CODES: Final[Mapping[type[GatewayError], grpc.StatusCode]] = {
    errors.GatewayError: _Code.INTERNAL,
    errors.Internal: _Code.INTERNAL,
    errors.Refusal: _Code.FAILED_PRECONDITION,
    errors.TokenUnknown: _Code.UNAUTHENTICATED,
    errors.TokenDisabled: _Code.PERMISSION_DENIED,
    errors.TokenExpired: _Code.PERMISSION_DENIED,
    errors.ModelNotAllowed: _Code.PERMISSION_DENIED,
    errors.IpNotAllowed: _Code.PERMISSION_DENIED,
    errors.BudgetExhausted: _Code.FAILED_PRECONDITION,
    errors.RequestExceedsBudget: _Code.FAILED_PRECONDITION,
    errors.BudgetReserved: _Code.RESOURCE_EXHAUSTED,
    errors.ModelNotPriced: _Code.FAILED_PRECONDITION,
    errors.UnboundedRequest: _Code.INVALID_ARGUMENT,
    errors.RateLimited: _Code.RESOURCE_EXHAUSTED,
    errors.RequestWithdrawn: _Code.FAILED_PRECONDITION,
    errors.InvalidArgument: _Code.INVALID_ARGUMENT,
    errors.NotFound: _Code.NOT_FOUND,
    errors.AlreadyExists: _Code.ALREADY_EXISTS,
    errors.FailedPrecondition: _Code.FAILED_PRECONDITION,
    errors.VersionMismatch: _Code.ABORTED,
    errors.Unauthenticated: _Code.UNAUTHENTICATED,
    errors.IdentityRevoked: _Code.UNAUTHENTICATED,
    errors.PermissionDenied: _Code.PERMISSION_DENIED,
    errors.Throttled: _Code.RESOURCE_EXHAUSTED,
    errors.DatabaseUnavailable: _Code.UNAVAILABLE,
    errors.InvalidRequest: _Code.INVALID_ARGUMENT,
    errors.AmbiguousCredentials: _Code.INVALID_ARGUMENT,
    errors.CrossSiteRequest: _Code.PERMISSION_DENIED,
    errors.ModelNotFound: _Code.NOT_FOUND,
    errors.RouteNotFound: _Code.NOT_FOUND,
    errors.MethodNotAllowed: _Code.UNIMPLEMENTED,
    errors.RequestTimeout: _Code.DEADLINE_EXCEEDED,
    errors.RequestTooLarge: _Code.RESOURCE_EXHAUSTED,
    errors.UnsupportedMediaType: _Code.INVALID_ARGUMENT,
    errors.AuthUnavailable: _Code.UNAVAILABLE,
    errors.AdminUnavailable: _Code.UNAVAILABLE,
    errors.Overloaded: _Code.RESOURCE_EXHAUSTED,
    errors.OutboxUnavailable: _Code.UNAVAILABLE,
    errors.UpstreamCredentials: _Code.UNAVAILABLE,
    errors.UpstreamError: _Code.UNAVAILABLE,
    errors.UpstreamTimeout: _Code.DEADLINE_EXCEEDED,
}
"""Each reason's code; a test walks all subclasses, so a new one needs its row here."""

# `Internal` stands after `GatewayError`, whose reason it shares, and so is what the reason is read as.
_BY_REASON: Final = {kind.reason: kind for kind in CODES}
_BY_CODE: Final[Mapping[grpc.StatusCode, type[GatewayError]]] = {
    _Code.INVALID_ARGUMENT: errors.InvalidArgument,
    _Code.NOT_FOUND: errors.NotFound,
    _Code.ALREADY_EXISTS: errors.AlreadyExists,
    _Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    _Code.ABORTED: errors.VersionMismatch,
    _Code.UNAUTHENTICATED: errors.Unauthenticated,
    _Code.PERMISSION_DENIED: errors.PermissionDenied,
    _Code.RESOURCE_EXHAUSTED: errors.Overloaded,
}
_UNREACHED: Final = frozenset({_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED})
_NUMBERS: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

# The status must fit into the 8 KiB of headers that every gRPC implementation takes; a byte of details may need three.
_DETAILS_BYTES: Final = 1_500
_METADATA_BYTES: Final = 1_500


def to_status(error: GatewayError) -> tuple[grpc.StatusCode, str, Trailers]:
    """The status of an error: its code, its details and its trailers.

    Messages above 1,500 bytes are cut; metadata above 1,500 bytes of JSON is left out from the back.
    """
    trailers: list[tuple[str, str | bytes]] = [("reason", error.reason)]
    if error.retry_after is not None:
        trailers.append(("retry_after", repr(float(error.retry_after))))
    if error.metadata:
        trailers.append(("metadata-bin", _metadata(error.metadata)))
    return code_of(error), _cut(error.message), tuple(trailers)


def code_of(error: GatewayError) -> grpc.StatusCode:
    """The code of an error. A subclass without a row of its own has its parent's."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def from_status(error: grpc.RpcError, *, unavailable: type[GatewayError] = errors.AuthUnavailable) -> GatewayError:
    """The error that a failed call stands for.

    unavailable: what a service is called that was not reached or did not answer in time; it asks to try again after a second.
    A status without a reason, such as one of gRPC's own, is read by its code; what nobody foresaw is `Internal`.
    """
    call: Any = error  # what both the sync and the asyncio stubs raise carries code, details and trailers
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return errors.Internal("the call failed without a status")
    code, details = call.code(), call.details() or ""
    trailers: dict[str, Any] = dict(call.trailing_metadata() or ())
    reason = _text(trailers.get("reason"))
    if reason in _BY_REASON:
        return from_reason(
            reason,
            details,
            retry_after=_seconds(_text(trailers.get("retry_after"))),
            metadata=_metadata_of(trailers.get("metadata-bin")),
        )
    if code in _UNREACHED:
        return unavailable("the service did not answer; try again", retry_after=1.0)
    if code is _Code.RESOURCE_EXHAUSTED and "larger than max" in details:
        return errors.RequestTooLarge("the message is larger than 4 MiB")
    kind = _BY_CODE.get(code, errors.Internal)
    return kind(details or code.name, retry_after=1.0 if kind is errors.Overloaded else None)


def from_reason(
    reason: str,
    message: str,
    *,
    code: int | None = None,
    retry_after: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> GatewayError:
    """The error of a reason, such as an `ItemError` carries it.

    code: the number of the gRPC status, for a reason that a newer service knows and we do not.
    """
    kind = _BY_REASON.get(reason)
    if kind is None:
        kind = _BY_CODE.get(_NUMBERS.get(code or 0, _Code.UNKNOWN), errors.Internal)
    return kind(message, retry_after=retry_after, metadata=metadata)


def _cut(message: str) -> str:
    raw = message.encode("utf-8", "replace")  # a lone surrogate has no UTF-8 and would fail the call
    return raw[:_DETAILS_BYTES].decode("utf-8", "ignore")


def _metadata(metadata: Mapping[str, str]) -> bytes:
    kept = dict(metadata)
    while True:
        raw = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        if len(raw) <= _METADATA_BYTES or not kept:
            return raw
        kept.popitem()


def _metadata_of(raw: str | bytes | None) -> dict[str, str]:
    try:
        value = json.loads(raw) if raw else {}
    except ValueError:
        return {}
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, dict) else {}


def _text(value: str | bytes | None) -> str:
    return value if isinstance(value, str) else ""


def _seconds(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
