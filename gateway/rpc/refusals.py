"""Refusals and denials: the same no, as Python raises it and as auth answers it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Final

from gateway import errors
from gateway.clock import from_text, to_text
from gateway.errors import GatewayError, Refusal
from gateway.stubs.auth.v1 import auth_pb2 as pb

_KINDS: Final[Mapping[pb.DenialReason.ValueType, type[Refusal]]] = {
    pb.DENIAL_REASON_TOKEN_UNKNOWN: errors.TokenUnknown,
    pb.DENIAL_REASON_TOKEN_DISABLED: errors.TokenDisabled,
    pb.DENIAL_REASON_TOKEN_EXPIRED: errors.TokenExpired,
    pb.DENIAL_REASON_MODEL_NOT_ALLOWED: errors.ModelNotAllowed,
    pb.DENIAL_REASON_IP_NOT_ALLOWED: errors.IpNotAllowed,
    pb.DENIAL_REASON_BUDGET_EXHAUSTED: errors.BudgetExhausted,
    pb.DENIAL_REASON_REQUEST_EXCEEDS_BUDGET: errors.RequestExceedsBudget,
    pb.DENIAL_REASON_BUDGET_RESERVED: errors.BudgetReserved,
    pb.DENIAL_REASON_MODEL_NOT_PRICED: errors.ModelNotPriced,
    pb.DENIAL_REASON_UNBOUNDED_REQUEST: errors.UnboundedRequest,
    pb.DENIAL_REASON_RATE_LIMITED: errors.RateLimited,
    pb.DENIAL_REASON_REQUEST_WITHDRAWN: errors.RequestWithdrawn,
}


_FIGURES: Final = ("remaining_nanos", "held_nanos", "needed_nanos", "limit_value")
_REASONS: Final = {kind: reason for reason, kind in _KINDS.items()}


def denial_of(refusal: Refusal) -> pb.Denial:
    """A refusal with its figures, as auth answers it."""
    figures = refusal.metadata
    denial = pb.Denial(
        reason=_REASONS[type(refusal)],
        message=refusal.message,
        limit=figures.get("limit", ""),
        token_id=int(figures.get("token_id", "0")),
    )
    if refusal.retry_after is not None:
        denial.retry_delay.FromMilliseconds(int(refusal.retry_after * 1000))
    for field in _FIGURES:
        if field in figures:
            setattr(denial, field, int(figures[field]))
    if "resets_at" in figures:
        denial.resets_at.FromDatetime(from_text(figures["resets_at"]))
    return denial


def refusal_of(denial: pb.Denial) -> Refusal:
    """The refusal that a denial is. One of a reason that this release does not know is a plain `Refusal`."""
    figures = {name: str(getattr(denial, name)) for name in _FIGURES if denial.HasField(name)}
    if denial.limit:
        figures["limit"] = denial.limit
    if denial.token_id:
        figures["token_id"] = str(denial.token_id)
    if denial.HasField("resets_at"):
        figures["resets_at"] = to_text(denial.resets_at.ToDatetime(UTC))
    retry_after = denial.retry_delay.ToMilliseconds() / 1000 if denial.HasField("retry_delay") else None
    return _KINDS.get(denial.reason, Refusal)(denial.message, retry_after=retry_after, metadata=figures)


def grant_of(response: pb.ValidateTokenResponse) -> pb.Grant | GatewayError:
    """The grant, or the refusal in its place."""
    return response.grant if response.WhichOneof("result") == "grant" else refusal_of(response.denial)
