"""The progress rule for answers: a caller who does not take what waits for them loses the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

SLOWEST: Final = 1024
"""Bytes a second that a caller must take on average over `WINDOW` while an answer waits."""
WINDOW: Final = 30.0
"""Seconds over which the pace is judged."""


class WriteWatch:
    """Looks at one connection while its answers wait in memory.

    written: how many bytes have been given to the transport so far. ended: is called when the caller was too slow.
    """

    __slots__ = ("_closing", "_ended", "_paused", "_taken", "_timer", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, written: Callable[[], int], ended: Callable[[], None]) -> None:
        self._transport = transport
        self._written = written
        self._ended = ended
        self._paused = self._closing = False
        self._taken = 0
        self._timer: asyncio.TimerHandle | None = None

    def pause(self) -> None:
        """Notes that more waits than the transport should hold."""
        self._paused = True
        self._start()

    def resume(self) -> None:
        """Notes that the transport takes more again."""
        self._paused = False

    def close(self) -> None:
        """Notes that the connection closes as soon as the caller has taken the rest."""
        self._closing = True
        if self._transport.get_write_buffer_size():
            self._start()

    def stop(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        if self._timer is None:
            self._taken = self._count()
            self._timer = asyncio.get_running_loop().call_later(WINDOW, self._look)

    def _count(self) -> int:
        """Bytes that have left the transport."""
        return self._written() - self._transport.get_write_buffer_size()

    def _look(self) -> None:
        self._timer = None
        if not (self._paused or self._closing):
            return  # what waits is little, and the next pause starts the watch again
        taken = self._count()
        if taken - self._taken < SLOWEST * WINDOW:
            self._transport.abort()  # `close` would wait for the caller to take the rest
            self._ended()
        else:
            self._start()
