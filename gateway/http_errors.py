"""Us to the caller, over HTTP: each reason's status, code, type and whether it is final. One table for the edge and for guards.

The table has a row for each subclass of `gateway.errors.GatewayError`. Messages come from where the fault is known.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway import errors as fault

UNKNOWN_TOKEN_TEXT = "The API key is not valid. Send a client token of this gateway as `Authorization: Bearer <token>`."  # noqa: S105 - a message
INTERNAL_TEXT = "internal error; the log has more under this request id"


@dataclass(frozen=True, slots=True)
class Row:
    """How one reason is told."""

    status: int
    """HTTP status, 400 to 599."""
    code: str
    """`error.code`, for programs."""
    type: str = "invalid_request_error"
    """`error.type`, in OpenAI's words."""
    final: bool = False
    """Whether the caller is told not to try again by itself (`x-should-retry: false`)."""


_SERVER = "server_error"
_QUOTA = "insufficient_quota"

TABLE: Mapping[str, Row] = {
    fault.GatewayError.reason: Row(500, "internal_error", _SERVER),
    fault.Refusal.reason: Row(403, "refused"),
    fault.TokenUnknown.reason: Row(401, "invalid_api_key"),
    fault.TokenDisabled.reason: Row(401, "token_disabled"),
    fault.TokenExpired.reason: Row(401, "token_expired"),
    fault.ModelNotAllowed.reason: Row(403, "model_not_allowed"),
    fault.IpNotAllowed.reason: Row(403, "ip_not_allowed"),
    fault.BudgetExhausted.reason: Row(402, "insufficient_quota", _QUOTA, final=True),
    fault.RequestExceedsBudget.reason: Row(402, "request_exceeds_budget", _QUOTA, final=True),
    fault.BudgetReserved.reason: Row(429, "budget_reserved", "requests"),
    fault.ModelNotPriced.reason: Row(402, "model_not_priced", _QUOTA, final=True),
    fault.UnboundedRequest.reason: Row(400, "unbounded_request"),
    fault.RateLimited.reason: Row(429, "rate_limit_exceeded", "requests"),
    fault.RequestWithdrawn.reason: Row(503, "request_withdrawn", _SERVER),
    fault.InvalidArgument.reason: Row(400, "invalid_request"),
    fault.NotFound.reason: Row(404, "not_found"),
    fault.AlreadyExists.reason: Row(409, "already_exists"),
    fault.FailedPrecondition.reason: Row(409, "failed_precondition"),
    fault.VersionMismatch.reason: Row(409, "version_mismatch"),
    fault.Unauthenticated.reason: Row(401, "unauthenticated"),
    fault.IdentityRevoked.reason: Row(503, "auth_unavailable", _SERVER),
    fault.PermissionDenied.reason: Row(403, "permission_denied"),
    fault.Throttled.reason: Row(429, "throttled", "requests"),
    fault.DatabaseUnavailable.reason: Row(503, "auth_unavailable", _SERVER),
    fault.InvalidRequest.reason: Row(400, "invalid_request"),
    fault.AmbiguousCredentials.reason: Row(400, "ambiguous_credentials"),
    fault.CrossSiteRequest.reason: Row(403, "cross_site_request"),
    fault.ModelNotFound.reason: Row(404, "model_not_found"),
    fault.RouteNotFound.reason: Row(404, "route_not_found"),
    fault.MethodNotAllowed.reason: Row(405, "method_not_allowed"),
    fault.RequestTimeout.reason: Row(408, "request_timeout"),
    fault.RequestTooLarge.reason: Row(413, "request_too_large"),
    fault.UnsupportedMediaType.reason: Row(415, "unsupported_media_type"),
    fault.AuthUnavailable.reason: Row(503, "auth_unavailable", _SERVER),
    fault.AdminUnavailable.reason: Row(503, "admin_unavailable", _SERVER),
    fault.Overloaded.reason: Row(503, "overloaded", _SERVER),
    fault.OutboxUnavailable.reason: Row(503, "outbox_unavailable", _SERVER),
    fault.UpstreamCredentials.reason: Row(502, "upstream_credentials", _SERVER),
    fault.UpstreamError.reason: Row(502, "upstream_error", _SERVER),
    fault.UpstreamTimeout.reason: Row(504, "upstream_timeout", _SERVER),
}

_INTERNAL_ROW = TABLE[fault.GatewayError.reason]


def row(error: BaseException) -> Row:
    """The row of an error; that of INTERNAL for whatever is none of ours."""
    if isinstance(error, fault.GatewayError):
        return TABLE.get(error.reason, _INTERNAL_ROW)
    return _INTERNAL_ROW


def status(error: BaseException, budget_status: Literal[402, 429] = 402) -> int:
    """The HTTP status of an error. budget_status: what stands for 402, by setting."""
    told = row(error).status
    return budget_status if told == 402 else told


def error_object(error: BaseException) -> dict[str, str | None]:
    """OpenAI's error object: message, type, param, code. One text for all unknown tokens; nothing of what nobody foresaw."""
    told = row(error)
    if isinstance(error, fault.TokenUnknown):
        message = UNKNOWN_TOKEN_TEXT
    elif told is _INTERNAL_ROW or not isinstance(error, fault.GatewayError):
        message = INTERNAL_TEXT
    else:
        message = error.message
    param = error.metadata.get("param") if isinstance(error, fault.GatewayError) else None
    return {"message": message, "type": told.type, "param": param, "code": told.code}


def retry_headers(error: BaseException) -> dict[str, str]:
    """When and whether to try again: `Retry-After` in whole seconds, `retry-after-ms`, `x-should-retry`.

    Callers who wait for money that is held are spread over half to one and a half times the delay, so that they do not all
    come back at once.
    """
    headers: dict[str, str] = {}
    if row(error).final:
        headers["x-should-retry"] = "false"
    delay = error.retry_after if isinstance(error, fault.GatewayError) else None
    if isinstance(error, fault.BudgetReserved):
        delay = (1.0 if delay is None else delay) * random.uniform(0.5, 1.5)  # noqa: S311 - spreading, not secrecy
    if delay is not None:
        headers["Retry-After"] = str(max(1, math.ceil(delay)))
        headers["retry-after-ms"] = str(max(1, round(delay * 1000)))
    return headers
