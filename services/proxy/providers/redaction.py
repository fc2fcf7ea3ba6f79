"""None of the gateway's keys comes back in what a provider says: not whole, not in pieces, not escaped, not cut over deltas."""

from __future__ import annotations

import asyncio
import json
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

PIECE: Final = 8
"""Characters of a key in a row that nobody outside may see."""
REDACTED: Final = "[redacted]"
_GRAM: Final = 4
_STRIDE: Final = PIECE - _GRAM + 1
"""Each piece holds one of the grams that begin at multiples of this, so that these few are all that is searched for."""
_LESSONS: Final = 4
"""How often the beginning of a stream's events is compared."""
_LONGEST_HEAD: Final = 1024
_SLICE: Final = 256 * 1024
"""Bytes that are searched at once: about 2 ms of the event loop."""
# How JSON, URLs and some servers' JSON write a character in another way.
_ESCAPED: Final = re.compile(rb"\\u00([0-7][0-9a-fA-F])|%([2-7][0-9a-fA-F])|\\(/)")
_ESCAPES: Final = rb"\\u00|%[2-7]|\\/"


class Redactor:
    """Takes the keys of one provider out of texts. Keys shorter than a piece are looked for whole."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = [secret.encode() for secret in secrets]
        self._places: dict[bytes, list[tuple[bytes, int]]] = defaultdict(list)
        for secret in self._secrets:
            size = min(_GRAM, len(secret))
            for at in range(0, len(secret) - size + 1, _STRIDE):
                self._places[secret[at : at + size]].append((secret, at))
        grams = b"|".join(re.escape(gram) for gram in sorted(self._places, key=len, reverse=True))
        self._grams = re.compile(grams) if grams else None
        # One search for what nearly all texts have nothing of: 2 us for an event, where a search for each piece takes 20.
        self.suspicious = re.compile(grams + b"|" + _ESCAPES) if grams else None
        self.suspicious_text = re.compile((grams + b"|" + _ESCAPES).decode()) if grams else None

    def redact(self, data: bytes) -> bytes:
        """These bytes without any piece of a key; the same object where there is none in them."""
        if self.suspicious is None or self.suspicious.search(data) is None:
            return data
        if _ESCAPED.search(data) is not None:
            data = _without(data, self._escaped_spans(data))
        return _without(data, self._spans(data))

    async def redact_long(self, data: bytes) -> bytes:
        """The same for bytes of any length, without holding up everybody else."""
        if self.suspicious is None or len(data) <= _SLICE:
            return self.redact(data)
        longest = max(map(len, self._secrets))
        for start in range(0, len(data), _SLICE):
            if self.suspicious.search(data, start, start + _SLICE + longest) is not None:
                return await asyncio.to_thread(self.redact, data)
            await asyncio.sleep(0)
        return data

    def is_in(self, text: str) -> bool:
        """Whether a piece of a key is in a text."""
        data = text.encode("utf-8", "replace")
        return self.redact(data) is not data

    def redact_text(self, text: str) -> str:
        """A text without any piece of a key, and fit for a message and a row: halves of surrogate pairs are replaced."""
        return self.redact(text.encode("utf-8", "replace")).decode()

    def _spans(self, data: bytes) -> list[tuple[int, int]]:
        """Where pieces of a key stand."""
        found = []
        assert self._grams is not None
        for match in self._grams.finditer(data):
            for secret, at in self._places[match[0]]:
                start, end, before, behind = match.start(), match.end(), at, at + len(match[0])
                while start > 0 and before > 0 and data[start - 1] == secret[before - 1]:
                    start, before = start - 1, before - 1
                while end < len(data) and behind < len(secret) and data[end] == secret[behind]:
                    end, behind = end + 1, behind + 1
                if end - start >= min(PIECE, len(secret)):
                    found.append((start, end))
        return sorted(found)

    def _escaped_spans(self, data: bytes) -> list[tuple[int, int]]:
        """Where pieces stand in which characters are escaped."""
        places, shifts, shift = [], [0], 0
        for match in _ESCAPED.finditer(data):
            places.append(match.start() - shift)
            shift += len(match[0]) - 1
            shifts.append(shift)
        plain = _ESCAPED.sub(lambda match: match[3] or bytes([int(match[1] or match[2], 16)]), data)

        def raw(position: int) -> int:
            return position + shifts[bisect_left(places, position)]

        return [(raw(start), raw(end)) for start, end in self._spans(plain)]


class StreamRedactor:
    """The same for a stream of events, whose texts a caller puts together again."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._tail = ""
        self._head = b""
        """How the events of this stream begin, in which no piece of a key stands: not searched again each time."""
        self._earlier = b""
        self._lessons = _LESSONS

    def redact(self, events: bytes, texts: Sequence[str]) -> bytes:
        """These events without any piece of a key, nor a text that completes one that earlier events began.

        texts: what of the events is generated text, in order. At most seven characters of a key pass before it is recognized.
        """
        redactor = self._redactor
        if redactor.suspicious is None or redactor.suspicious_text is None:
            return events
        known = bool(self._head) and events.startswith(self._head)
        if redactor.suspicious.search(events, len(self._head) - _GRAM if known else 0) is not None:
            events = redactor.redact(events)
        elif not known and self._lessons:
            self._learn(events)
        if texts:
            joined = self._tail + "".join(texts)
            self._tail = joined[1 - PIECE :]
            if redactor.suspicious_text.search(joined) is not None and redactor.is_in(joined):
                for text in texts:
                    for written in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
                        events = events.replace(written.encode("utf-8", "replace"), b'"' + REDACTED.encode() + b'"')
        return events

    def _learn(self, events: bytes) -> None:
        """Compares the beginnings of two clean events."""
        self._lessons -= 1
        beginning = events[:_LONGEST_HEAD]
        pairs = enumerate(zip(self._earlier, beginning, strict=False))
        same = next((place for place, (one, other) in pairs if one != other), min(len(self._earlier), len(beginning)))
        self._head = beginning[:same] if same > _GRAM else b""
        self._earlier = beginning


def _without(data: bytes, spans: list[tuple[int, int]]) -> bytes:
    """These bytes with each of these places, in order, replaced; places that touch count as one."""
    parts, kept, at = [], 0, 0
    while at < len(spans):
        start, end = spans[at]
        while at + 1 < len(spans) and spans[at + 1][0] <= end:
            at += 1
            end = max(end, spans[at][1])
        parts += [data[kept:start], REDACTED.encode()]
        kept, at = end, at + 1
    return b"".join([*parts, data[kept:]]) if parts else data
