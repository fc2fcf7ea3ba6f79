"""Callers who send no more: those who wait for their answer are served whole, those who went away are noticed.

The end of what a caller sends (FIN) looks the same for both. Who went away entirely answers whatever is sent with a reset; so a
caller whose answer has not begun is sent `100 Continue`, which every client of HTTP/1.1 takes and passes over.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

LOOK_EVERY: Final = 0.25
"""Seconds between two looks at the connection: nothing tells of a reset to who does not read any more."""
PROBE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSED: Final = 7  # TCP_CLOSE of Linux's tcp_states.h: there was a reset


class HalfClosed:
    """Watches one connection whose caller sends no more, until it is stopped."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)

    def probe(self) -> None:
        """Has a caller who went away give that away. Only before an answer, and only where HTTP/1.1 is spoken."""
        self._transport.write(PROBE)

    def stop(self) -> None:
        """Watches no more."""
        self._timer.cancel()

    def _look(self) -> None:
        connection = self._transport.get_extra_info("socket")
        if self._transport.is_closing() or connection is None:
            return
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED:
            self._transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)
