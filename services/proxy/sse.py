"""Server-sent events over bytes: where one ends, and what it carries. Nothing is decoded that nobody asks for."""

from __future__ import annotations

import re

MAX_EVENT = 16 * 1024 * 1024
"""Bytes that one event may have."""

_EVENT_END = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """An event has more bytes than one may have."""


class EventSplitter:
    """Cuts a stream of bytes, however it was cut before, after the blank line that ends each event.

    The events put together again are the stream, byte for byte.
    """

    __slots__ = ("_carriage_returns", "_parts", "_size", "_tail")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._tail = b""
        self._carriage_returns = False

    @property
    def rest(self) -> bytes:
        """What came after the last whole event."""
        return b"".join(self._parts)

    def payload_of_one(self, data: bytes) -> bytes | None:
        """What these bytes carry if they are one whole event of one `data` line, as most are; None: `feed` them."""
        if self._parts or not data.startswith(b"data: ") or not data.endswith(b"\n\n"):
            return None
        return data[6:-2] if data.count(b"\n") == 2 and b"\r" not in data else None

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now, each with the blank line that ends it. Raises EventTooLarge."""
        if not self._carriage_returns:
            if b"\r" in data:
                self._carriage_returns = True
            elif not self._parts and data.endswith(b"\n\n") and data.count(b"\n\n") == 1:
                return [data]  # one whole event, as most often
        if self._parts:
            # Only a blank line ends an event: until one can be there, nothing is put together.
            if not self._may_end(self._tail + data):
                return self._keep(data)
            self._parts.append(data)
            data = b"".join(self._parts)
            self._parts = []
            self._size = 0
        events = self._cut(data)
        rest = events.pop()
        if rest:
            self._keep(rest)
        return events

    def _keep(self, data: bytes) -> list[bytes]:
        self._parts.append(data)
        self._size += len(data)
        self._tail = (self._tail + data)[-3:] if len(data) < 3 else data[-3:]
        if self._size > MAX_EVENT:
            raise EventTooLarge(f"an event has more than {MAX_EVENT} bytes")
        return []

    def _may_end(self, data: bytes) -> bool:
        return b"\n\n" in data if not self._carriage_returns else _EVENT_END.search(data) is not None

    def _cut(self, data: bytes) -> list[bytes]:
        """The events, and as the last item what follows them."""
        if not self._carriage_returns:
            parts = data.split(b"\n\n")
            rest = parts.pop()
            return [*(part + b"\n\n" for part in parts), rest]
        events, start = [], 0
        for match in _EVENT_END.finditer(data):
            events.append(data[start : match.end()])
            start = match.end()
        return [*events, data[start:]]


def data_of(event: bytes) -> bytes | None:
    """What the `data` lines of an event carry, joined by newlines; None: it has none, as a comment or a blank line."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    lines = []
    for line in _LINE_END.split(event.removeprefix(_BOM)):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
