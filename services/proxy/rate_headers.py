"""`x-ratelimit-*`: what a token's limits are, what is left of them, and when they start anew, in OpenAI's form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from gateway import limits
from gateway.errors import RateLimited
from gateway.stubs.auth.v1 import auth_pb2 as pb

# How a limit is called in a header. OpenAI has none for calls at once.
_NAMES: Final[Mapping[str, str]] = {limits.REQUESTS: "requests", limits.TOKENS: "tokens", limits.PARALLEL: "parallel"}


def of_limits(rate_limits: Iterable[pb.RateLimit], now: float) -> dict[str, str]:
    """The headers of an admitted call: what is left after it.

    now: seconds since 1970.
    """
    headers: dict[str, str] = {}
    for limit in rate_limits:
        name = _NAMES.get(limit.name)
        if name is not None:
            seconds = limit.resets_at.seconds + limit.resets_at.nanos / 1e9 - now
            headers |= _of(name, limit.limit, limit.remaining, seconds)
    return headers


def of_refusal(error: RateLimited) -> dict[str, str]:
    """The headers of a refusal: nothing is left of the limit that was met. None where it is no limit of a token's."""
    name = _NAMES.get(error.metadata.get("limit", ""))
    if name is None or "limit_value" not in error.metadata:
        return {}
    # By the delay, so that these and Retry-After say the same; calls at once come free whenever one ends.
    seconds = error.retry_after if "resets_at" in error.metadata else None
    return _of(name, int(error.metadata["limit_value"]), 0, seconds)


def _of(name: str, limit: int, remaining: int, seconds: float | None) -> dict[str, str]:
    headers = {f"x-ratelimit-limit-{name}": str(limit), f"x-ratelimit-remaining-{name}": str(remaining)}
    if seconds is not None:
        headers[f"x-ratelimit-reset-{name}"] = f"{max(0, math.ceil(seconds))}s"
    return headers
