"""Connections from their acceptance until they are served: they wait for the first byte, and then for their turn."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from gateway.process.logs import get_logger
from services.proxy.connections import Place, Places, origin_of

PAUSE: Final = 0.001
"""Seconds between two connections that begin to be served: each costs about as much as a request."""

Serve = Callable[[socket.socket, str, Place], Coroutine[Any, Any, None]]
"""Serves a connection from an address that has this place; what it raises ends the connection."""

_log = get_logger(__name__)


class _Arrival:
    """One connection that is not served yet."""

    __slots__ = ("_arrivals", "address", "connection", "deadline", "place", "serve")

    def __init__(
        self, arrivals: Arrivals, connection: socket.socket, address: str, place: Place, serve: Serve, deadline: float
    ) -> None:
        self._arrivals = arrivals
        self.connection = connection
        self.address = address
        self.place = place
        self.serve = serve
        self.deadline = deadline

    def give_way(self) -> None:
        """Ends it for another connection."""
        self._arrivals.give_way(self)


class Arrivals:
    """The connections of a server that are not served yet.

    A connection that sends nothing costs a socket and no more. Those that have sent something begin to be served one by one,
    address by address: whoever opens thousands at once waits for himself, and others do not.

    places: for connections; what finds none is closed. ended: is told why a connection was ended before its time, in a word.
    """

    def __init__(self, places: Places, ended: Callable[[str], None]) -> None:
        self._places = places
        self._ended = ended
        self._silent: dict[_Arrival, None] = {}
        self._ready: dict[str, deque[_Arrival]] = {}
        self._starting = False
        self._serving: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, connection: socket.socket, address: str, serve: Serve, patience: float) -> None:
        """Takes a connection that was accepted, or closes it. patience: seconds that it may send nothing."""
        place = self._places.enter(address)
        if place is None:
            self._ended("no_place")
            connection.close()
            return
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        arrival = _Arrival(self, connection, address, place, serve, loop.time() + patience)
        if self._look(arrival):
            return
        self._silent[arrival] = None
        place.waits(arrival)
        loop.add_reader(connection.fileno(), self._look, arrival)
        if self._timer is None:
            self._timer = loop.call_at(arrival.deadline, self._end_late)

    def give_way(self, arrival: _Arrival) -> None:
        """Ends a connection that has sent nothing, for another one."""
        self._forget(arrival)
        self._ended("gave_way")
        self._end(arrival)

    async def close(self) -> None:
        """Ends all connections that are not served yet."""
        if self._timer is not None:
            self._timer.cancel()
        for arrival in tuple(self._silent):
            self._forget(arrival)
            self._end(arrival)
        for arrival in (arrival for queue in self._ready.values() for arrival in queue):
            self._end(arrival)
        self._ready.clear()
        for task in tuple(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _look(self, arrival: _Arrival) -> bool:
        """Whether it has sent something, or its end: then it is on its way, or done with."""
        try:
            begun = arrival.connection.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:  # it was reset
            begun = b""
        if arrival in self._silent:
            self._forget(arrival)
        if not begun:
            self._end(arrival)
            return True
        self._ready.setdefault(origin_of(arrival.address), deque()).append(arrival)
        if not self._starting:
            self._starting = True
            asyncio.get_running_loop().call_soon(self._start)
        return True

    def _start(self) -> None:
        """Begins to serve the one whose turn it is."""
        self._starting = bool(self._ready)
        if not self._ready:
            return
        loop = asyncio.get_running_loop()
        origin = next(iter(self._ready))
        queue = self._ready.pop(origin)
        arrival = queue.popleft()
        task = loop.create_task(arrival.serve(arrival.connection, arrival.address, arrival.place))
        self._serving.add(task)
        task.add_done_callback(partial(self._note_begun, arrival))
        if queue:
            self._ready[origin] = queue  # behind the others
        loop.call_later(PAUSE, self._start)

    def _note_begun(self, arrival: _Arrival, task: asyncio.Task[None]) -> None:
        """Ends a connection that could not begin to be served."""
        self._serving.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OSError):
            _log.error("connection_failed", error=type(error).__name__, exc_info=error)
        if error is not None or task.cancelled():
            self._end(arrival)

    def _end_late(self) -> None:
        """Ends those that have been silent for too long."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for arrival in tuple(self._silent):
            if arrival.deadline > loop.time():
                self._timer = loop.call_at(arrival.deadline, self._end_late)
                return
            self._forget(arrival)
            self._end(arrival)

    def _forget(self, arrival: _Arrival) -> None:
        """Waits for its first byte no more."""
        del self._silent[arrival]
        asyncio.get_running_loop().remove_reader(arrival.connection.fileno())
        arrival.place.works()

    def _end(self, arrival: _Arrival) -> None:
        arrival.connection.close()
        arrival.place.leave()
