"""What guards of handlers have in common: the token in a header, and whose fault a fault is."""

from __future__ import annotations

import logging
from typing import Final

from gateway.errors import (
    AlreadyExists,
    AuthUnavailable,
    FailedPrecondition,
    GatewayError,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RequestTooLarge,
    TokenUnknown,
    Unauthenticated,
)

_log: Final = logging.getLogger("gateway.client")

# What auth says of this service or of its terms. To the caller these are a fault of ours: he is neither unknown nor forbidden.
_OURS: Final = (
    PermissionDenied,
    Unauthenticated,
    InvalidArgument,
    RequestTooLarge,
    FailedPrecondition,
    AlreadyExists,
    NotFound,
    Internal,
)


def token_of(authorization: str | None) -> str:
    """The client token in an `authorization` entry. Raises TokenUnknown where there is none."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenUnknown("Send a client token as `authorization: Bearer <token>`.")
    return token.strip()


def told(error: GatewayError) -> GatewayError:
    """The error as the caller is told of it: a fault of this service's own is logged, and told as AuthUnavailable."""
    if not isinstance(error, _OURS):
        return error
    _log.error("service_refused: %s (%s)", error.message, error.reason)
    return AuthUnavailable("The service that checks tokens cannot be asked. Try again later.", retry_after=1.0)
