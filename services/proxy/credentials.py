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
    """Counts the unknown tokens that each address presents, and refuses an address above the limit without asking auth.

    A valid token must still pass from such an address: it may be that of a whole office, or of a reverse proxy that nobody
    named as trusted. So a token that auth has recognized before is always asked about. A token that auth did not know a moment
    ago is not asked about again. Of the tokens that were never seen, one a second and address is asked about. Nothing here lets
    a token in; it only decides whether auth is asked. See docs/adr/0019.

    limit: how many a minute get a plain 401. remembered: how many addresses, and how many tokens, are remembered.
    spare: how many unseen tokens an address above the limit may present at once; one more each second.
    """

    def __init__(self, *, limit: int = 30, remembered: int = 10_000, spare: int = 4) -> None:
        self._limit = limit
        self._remembered = remembered
        self._spare = spare
        self._minute = 0
        self._tries: OrderedDict[str, int] = OrderedDict()
        self._above: dict[str, _Allowance] = {}
        self._unknown: set[bytes] = set()
        self._recognized: OrderedDict[bytes, None] = OrderedDict()

    def check(self, address: str, key: bytes, now: float | None = None) -> None:
        """Raises RateLimited where auth is not to be asked about this token from this address.

        key: a hash of the token. now: Unix seconds; None: the wall clock.
        """
        if not self._above:
            return
        seconds = self._moved_to(now)
        allowance = self._above.get(address)
        if allowance is None or key in self._recognized:
            return
        if key in self._unknown or not allowance.spend(seconds, self._spare):
            raise _too_many(seconds)

    def recognize(self, key: bytes) -> None:
        """Remembers that auth knows this token, whether it may be used or not."""
        if key not in self._recognized:
            self._recognized[key] = None
            if len(self._recognized) > self._remembered:
                self._recognized.popitem(last=False)

    def note(self, address: str, key: bytes, now: float | None = None) -> None:
        """Notes one more unknown token. Raises RateLimited above the limit, until the minute is over.

        address: the caller's. key: a hash of the token. now: Unix seconds; None: the wall clock.
        """
        seconds = self._moved_to(now)
        self._recognized.pop(key, None)
        tries = self._tries.pop(address, 0) + 1
        self._tries[address] = tries
        if len(self._tries) > self._remembered:
            self._above.pop(self._tries.popitem(last=False)[0], None)
        if len(self._unknown) < self._remembered:
            self._unknown.add(key)
        if tries >= self._limit and address not in self._above:
            self._above[address] = _Allowance(self._spare, seconds)
        if tries > self._limit:
            raise _too_many(seconds)

    def _moved_to(self, now: float | None) -> float:
        """The time; what is counted a minute starts again with each minute."""
        seconds = time.time() if now is None else now
        minute = int(seconds // 60)
        if minute != self._minute:
            self._minute = minute
            self._tries.clear()
            self._above.clear()
            self._unknown.clear()
        return seconds


class _Allowance:
    """How many unseen tokens auth may still be asked about for one address."""

    __slots__ = ("_left", "_since")

    def __init__(self, left: float, since: float) -> None:
        self._left = left
        self._since = since

    def spend(self, seconds: float, most: int) -> bool:
        """Takes one, if there is one."""
        self._left = min(most, self._left + max(0.0, seconds - self._since))
        self._since = seconds
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _too_many(seconds: float) -> RateLimited:
    return RateLimited("Too many unknown API keys from this address. Wait a minute.", retry_after=60 - seconds % 60)
