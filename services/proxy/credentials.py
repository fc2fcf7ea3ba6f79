"""Who is calling: the client token out of a request's headers, and what becomes of addresses that guess."""

from __future__ import annotations

import time
from collections import OrderedDict

from multidict import CIMultiDictProxy

from gateway.errors import AmbiguousCredentials, RateLimited, TokenUnknown

MAX_LENGTH = 512
_PLAIN_CARRIERS = ("x-api-key", "api-key", "x-goog-api-key")


def client_token(headers: CIMultiDictProxy[str]) -> str:
    """The client token of a request: `Authorization: Bearer`, `x-api-key`, `api-key` or `x-goog-api-key`.

    An empty value is an absent one. Raises TokenUnknown when there is none or it cannot be a token, AmbiguousCredentials when
    two different ones were sent. The query string and cookies are never looked at.
    """
    found = ""
    for value in headers.getall("Authorization", ()):
        scheme, _, rest = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            found = _one_of(found, rest.strip())
        elif rest:  # another scheme is no token of ours, and no empty value either
            found = _one_of(found, value)
    for name in _PLAIN_CARRIERS:
        if name in headers:
            for value in headers.getall(name):
                found = _one_of(found, value.strip())
    if not found or len(found) > MAX_LENGTH or not found.isascii() or not found.isprintable() or " " in found:
        raise TokenUnknown("no client token")
    return found


def _one_of(found: str, other: str) -> str:
    if found and other and found != other:
        raise AmbiguousCredentials(
            "Two headers carry two different credentials. Send the client token once, as `Authorization: Bearer <token>`."
        )
    return found or other


class Strangers:
    """Counts the unknown tokens that each address presents.

    limit: how many a minute pass as a plain 401. remembered: how many addresses are kept in mind at once.
    """

    def __init__(self, *, limit: int = 30, remembered: int = 10_000) -> None:
        self._limit = limit
        self._remembered = remembered
        self._minute = 0
        self._tries: OrderedDict[str, int] = OrderedDict()

    def note(self, address: str, now: float | None = None) -> None:
        """Notes one more unknown token. Raises RateLimited above the limit, until the minute is over.

        address: the caller's. now: Unix seconds; None: the wall clock.
        """
        seconds = time.time() if now is None else now
        minute = int(seconds // 60)
        if minute != self._minute:
            self._minute = minute
            self._tries.clear()
        tries = self._tries.pop(address, 0) + 1
        self._tries[address] = tries
        if len(self._tries) > self._remembered:
            self._tries.popitem(last=False)
        if tries > self._limit:
            raise RateLimited("Too many unknown API keys from this address. Wait a minute.", retry_after=60 - seconds % 60)
