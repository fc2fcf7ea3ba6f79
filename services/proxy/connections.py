"""How many connections there may be, what they may hold before a request is whole, and whose turn it is.

`Places` counts connections, in all and by address. `Unread` counts bytes that belong to no request yet. `Turns` lets requests
that were sent before the answer to the one before them (pipelining) be served one after the other. `server.py` uses all three.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, Protocol

_SUBSCRIBER: Final = 64
"""Bits of an IPv6 address that one subscriber has at least: addresses below it cost nothing."""


class Waiting(Protocol):
    """A connection without an open request."""

    def give_way(self) -> None:
        """Closes it, for another connection."""
        ...


class Holder(Protocol):
    """A connection that holds bytes of unfinished or waiting requests."""

    def give_back(self) -> None:
        """Lets go of them, and of the connection as soon as its open request is answered."""
        ...


class InTurn(Protocol):
    """A connection whose next request is here already."""

    def take_turn(self) -> None:
        """Goes on with it."""
        ...


class _Origin:
    """The connections of one address: how many, and which of them wait, the longest first."""

    __slots__ = ("count", "limited", "waiting")

    def __init__(self, *, limited: bool) -> None:
        self.limited = limited
        self.count = 0
        self.waiting: dict[Waiting, None] = {}


class Place:
    """One connection's place. Its holder says when it waits for a request, and when it is left."""

    __slots__ = ("_origin", "_places", "_waiting")

    def __init__(self, places: Places, origin: _Origin) -> None:
        self._places = places
        self._origin: _Origin | None = origin
        self._waiting: Waiting | None = None

    def waits(self, connection: Waiting) -> None:
        """From now on the connection has no open request: it may have to give way."""
        if self._origin is not None:
            self._waiting = connection
            self._origin.waiting[connection] = None

    def works(self) -> None:
        """From now on it has one."""
        if self._origin is not None and self._waiting is not None:
            del self._origin.waiting[self._waiting]
            self._waiting = None

    def leave(self) -> None:
        """Gives the place back. Harmless when done twice."""
        self.works()
        origin, self._origin = self._origin, None
        if origin is not None:
            self._places.left(origin)


class Places:
    """The places for connections.

    most: in all. most_of_one: of one address; an IPv6 address counts with its whole /64. is_exempt: whether an address may have
    more than that, as trusted proxies do.

    Where there is no place left, the connection that has waited longest for a request gives way: one of the same address where
    that has reached its limit, else one of the address that has the most.
    """

    def __init__(self, most: int, most_of_one: int, *, is_exempt: Callable[[str], bool] = lambda _: False) -> None:
        self.most = most
        self.most_of_one = most_of_one
        self._is_exempt = is_exempt
        self._origins: dict[str, _Origin] = {}
        self._names: dict[_Origin, str] = {}
        self.taken = 0
        """How many are taken."""

    def enter(self, address: str) -> Place | None:
        """A place for a connection from this address; None: there is none."""
        name = origin_of(address)
        origin = self._origins.get(name)
        if origin is None:
            origin = _Origin(limited=not self._is_exempt(address))
        elif origin.limited and origin.count >= self.most_of_one and not self._clear(origin):
            return None
        if self.taken >= self.most and not self._clear(self._largest()):
            return None
        self._origins[name] = origin
        self._names[origin] = name
        origin.count += 1
        self.taken += 1
        return Place(self, origin)

    def left(self, origin: _Origin) -> None:
        """Notes that a place of this origin is free."""
        self.taken -= 1
        origin.count -= 1
        if not origin.count:
            self._origins.pop(self._names.pop(origin))

    def _largest(self) -> _Origin | None:
        """The origin with the most connections among those that have a waiting one."""
        waiting = [origin for origin in self._origins.values() if origin.waiting]
        return max(waiting, key=lambda origin: origin.count) if waiting else None

    def _clear(self, origin: _Origin | None) -> bool:
        """Whether a waiting connection of this origin could be closed."""
        if origin is None or not origin.waiting:
            return False
        next(iter(origin.waiting)).give_way()
        return True


class Unread:
    """Bytes of unfinished heads and of requests that wait behind an open one, over all connections.

    size: bytes that they may be together. Above it the connection that holds the most lets go.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: dict[Holder, int] = {}
        self.total = 0
        """Bytes that are held."""

    def hold(self, holder: Holder, amount: int) -> None:
        """Notes that a connection holds so many bytes now."""
        self.total += amount - self._held.pop(holder, 0)
        if amount:
            self._held[holder] = amount
        while self.total > self._size:
            most = max(self._held, key=self._held.__getitem__)
            self.drop(most)
            most.give_back()

    def drop(self, holder: Holder) -> None:
        """Notes that a connection holds nothing any more."""
        self.total -= self._held.pop(holder, 0)


class Turns:
    """Lets one connection at a time go on with a request that it sent too early.

    A caller who sends hundreds of requests at once would else be served as fast as the edge can, and everybody beside him
    would wait for each of them. every: seconds between two turns, so that most of the time is left for the others.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._queue: deque[InTurn] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, connection: InTurn) -> None:
        """Gives a connection its turn, after those that have asked before."""
        self._queue.append(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._next)

    def _next(self) -> None:
        self._timer = None
        connection = self._queue.popleft()
        if self._queue:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._next)
        connection.take_turn()


@lru_cache(4096)
def origin_of(address: str) -> str:
    """What counts as one address: an IPv4 address, also in its mapped form, or the /64 of an IPv6 address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed, _SUBSCRIBER), strict=False))
    return str(parsed)
