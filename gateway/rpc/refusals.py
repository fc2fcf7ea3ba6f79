"""What auth answers as what its callers raise: a denial is the `Refusal` of its reason, a fault the error of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway import errors
from gateway.errors import GatewayError, Refusal
from gateway.stubs.auth.v1 import auth_pb2 as pb

_KINDS: Final[Mapping[int, type[Refusal]]] = {
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


def refusal_of(denial: pb.Denial) -> Refusal:
    """The refusal that a denial is. One of a reason that this release does not know is a plain `Refusal`."""
    figures = {
        name: str(getattr(denial, name)) for name in ("remaining_nanos", "held_nanos", "needed_nanos") if denial.HasField(name)
    }
    if denial.limit:
        figures["limit"] = denial.limit
    if denial.token_id:
        figures["token_id"] = str(denial.token_id)
    if denial.HasField("resets_at"):
        figures["resets_at"] = denial.resets_at.ToJsonString()
    retry_after = denial.retry_delay.ToMilliseconds() / 1000 if denial.HasField("retry_delay") else None
    return _KINDS.get(denial.reason, Refusal)(denial.message, retry_after=retry_after, metadata=figures)


def grant_of(response: pb.ValidateTokenResponse) -> pb.Grant | GatewayError:
    """The grant, or the refusal in its place."""
    return response.grant if response.WhichOneof("result") == "grant" else refusal_of(response.denial)
