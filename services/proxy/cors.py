"""Pages of other origins that call `/v1` from a browser: which may, and the headers that tell the browser so.

Never with credentials of the browser's own (cookies, client certificates): a page sends its client token itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from aiohttp import web

PREFIX = "/v1/"
MAX_AGE = 86_400
"""Seconds that a browser may remember the answer to its question."""
EXPOSED = (
    "x-request-id, request-id, x-gateway-cost, x-gateway-provider, x-gateway-attempts, x-gateway-max-output-tokens, "
    "retry-after, retry-after-ms, x-should-retry, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    "x-ratelimit-limit-parallel, x-ratelimit-remaining-parallel"
)
_VARY: Mapping[str, str] = {"Vary": "Origin"}
_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_LONGEST = 2048


class Cors:
    """Answers browsers.

    origins: those whose pages may call.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def headers(self, request: web.BaseRequest) -> Mapping[str, str]:
        """What an answer under `/v1` carries."""
        origin = request.headers.get("Origin")
        if origin is None or origin not in self._origins:
            return _VARY
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED, **_VARY}

    def preflight(self, request: web.BaseRequest, allow: str) -> Mapping[str, str]:
        """What the answer to a browser's question before the call carries beside that; nothing for any other OPTIONS.

        allow: the methods of the route.
        """
        headers = request.headers
        if "Access-Control-Request-Method" not in headers or headers.get("Origin") not in self._origins:
            return {}
        told = {
            "Access-Control-Allow-Methods": allow,
            "Access-Control-Max-Age": str(MAX_AGE),
            "Vary": "Origin, Access-Control-Request-Headers",
        }
        wanted = headers.get("Access-Control-Request-Headers", "")
        # SDKs send headers of their own by the dozen; what of them goes on to a provider is decided elsewhere.
        if len(wanted) <= _LONGEST and _NAMES.fullmatch(wanted):
            told["Access-Control-Allow-Headers"] = wanted
        return told
