"""What can go wrong, in one vocabulary: a subclass a reason.

The borders turn these into their own language: `gateway/rpc/status.py` into gRPC statuses and back, `services/proxy/errors.py`
into HTTP statuses and the error object of the caller's dialect. `docs/errors.md` has a row for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class GatewayError(Exception):
    """A fault that its reader can do something about.

    message: says what to do next; holds no secret, no SQL.
    retry_after: seconds after which it makes sense to try again; None: it does not.
    metadata: further facts for programs, text to text.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, retry_after: float | None = None, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.metadata: dict[str, str] = dict(metadata or {})

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is type(self)
            and isinstance(other, GatewayError)
            and (other.message, other.retry_after, other.metadata) == (self.message, self.retry_after, self.metadata)
        )

    def __hash__(self) -> int:
        return hash((self.reason, self.message))


class Internal(GatewayError):
    """Something that nobody foresaw; told as "internal error" with the request's id, logged whole."""

    reason = "INTERNAL"


# -- refusals: the ledger's answer to a call, one a `DenialReason` of the protocol ------------------------------------------


class Refusal(GatewayError):
    """The ledger's no. Not a fault of the gateway."""

    reason = "REFUSED"


class TokenUnknown(Refusal):
    """No live token has this secret: missing, malformed, unknown or deleted."""

    reason = "TOKEN_UNKNOWN"


class TokenDisabled(Refusal):
    """An administrator switched the token off."""

    reason = "TOKEN_DISABLED"


class TokenExpired(Refusal):
    """The token's day has passed."""

    reason = "TOKEN_EXPIRED"


class ModelNotAllowed(Refusal):
    """The token is not for this model."""

    reason = "MODEL_NOT_ALLOWED"


class IpNotAllowed(Refusal):
    """The token is not for this address."""

    reason = "IP_NOT_ALLOWED"


class BudgetExhausted(Refusal):
    """The budget is spent."""

    reason = "BUDGET_EXHAUSTED"


class RequestExceedsBudget(Refusal):
    """The call may cost more than what is left of the budget."""

    reason = "REQUEST_EXCEEDS_BUDGET"


class BudgetReserved(Refusal):
    """The money that is left is held by calls in flight."""

    reason = "BUDGET_RESERVED"


class ModelNotPriced(Refusal):
    """The token has a budget and the model has no price."""

    reason = "MODEL_NOT_PRICED"


class UnboundedRequest(Refusal):
    """The request has no upper bound of cost and the budget is strict."""

    reason = "UNBOUNDED_REQUEST"


class RateLimited(Refusal):
    """Too many requests, tokens, parallel calls or tries."""

    reason = "RATE_LIMITED"


class RequestWithdrawn(Refusal):
    """The caller reported this call as not made before it was admitted."""

    reason = "REQUEST_WITHDRAWN"


# -- gRPC services ------------------------------------------------------------------------------------------------------------


class InvalidArgument(GatewayError):
    """A field is wrong; the message names it and says what it takes."""

    reason = "INVALID_ARGUMENT"


class NotFound(GatewayError):
    """There is no such thing."""

    reason = "NOT_FOUND"


class AlreadyExists(GatewayError):
    """The id or the secret is taken by something else."""

    reason = "ALREADY_EXISTS"


class FailedPrecondition(GatewayError):
    """It cannot be done to this thing as it is."""

    reason = "FAILED_PRECONDITION"


class VersionMismatch(GatewayError):
    """Someone else changed it meanwhile."""

    reason = "VERSION_MISMATCH"


class Unauthenticated(GatewayError):
    """No identity, no live session, or a wrong password."""

    reason = "UNAUTHENTICATED"


class IdentityRevoked(Unauthenticated):
    """The certificate of this identity is no longer valid."""

    reason = "IDENTITY_REVOKED"


class PermissionDenied(GatewayError):
    """This identity or role may not do this."""

    reason = "PERMISSION_DENIED"


class Throttled(GatewayError):
    """Too many tries."""

    reason = "THROTTLED"


class DatabaseUnavailable(GatewayError):
    """The database is away, locked or full. Nothing was changed."""

    reason = "DATABASE_UNAVAILABLE"


# -- the edge --------------------------------------------------------------------------------------------------------------


class InvalidRequest(GatewayError):
    """The body or a field of it cannot be read."""

    reason = "INVALID_REQUEST"


class AmbiguousCredentials(GatewayError):
    """Two headers carry two different credentials."""

    reason = "AMBIGUOUS_CREDENTIALS"


class CrossSiteRequest(GatewayError):
    """A cookie session came without proof that the page is our own."""

    reason = "CROSS_SITE_REQUEST"


class ModelNotFound(GatewayError):
    """No provider serves this model."""

    reason = "MODEL_NOT_FOUND"


class RouteNotFound(GatewayError):
    """There is no such route."""

    reason = "ROUTE_NOT_FOUND"


class MethodNotAllowed(GatewayError):
    """The route does not take this method."""

    reason = "METHOD_NOT_ALLOWED"


class RequestTimeout(GatewayError):
    """The body came too slowly."""

    reason = "REQUEST_TIMEOUT"


class RequestTooLarge(GatewayError):
    """The body is larger than the gateway takes."""

    reason = "REQUEST_TOO_LARGE"


class UnsupportedMediaType(GatewayError):
    """The body is of a kind that this route does not read."""

    reason = "UNSUPPORTED_MEDIA_TYPE"


class AuthUnavailable(GatewayError):
    """The auth service did not answer in time. No call is let through without it."""

    reason = "AUTH_UNAVAILABLE"


class AdminUnavailable(GatewayError):
    """The admin service did not answer in time."""

    reason = "ADMIN_UNAVAILABLE"


class Overloaded(GatewayError):
    """Too many calls are waiting."""

    reason = "OVERLOADED"


class OutboxUnavailable(GatewayError):
    """The proxy cannot write down what would be used, so it makes no call."""

    reason = "OUTBOX_UNAVAILABLE"


class UpstreamCredentials(GatewayError):
    """The provider refused the gateway's key."""

    reason = "UPSTREAM_CREDENTIALS"


class UpstreamError(GatewayError):
    """The provider failed or answered something unreadable."""

    reason = "UPSTREAM_ERROR"


class UpstreamTimeout(GatewayError):
    """The provider did not answer in time."""

    reason = "UPSTREAM_TIMEOUT"
