"""Strict JSON: what is checked is what is sent.

A body is read by exactly one set of rules, so that no provider can read it in another way: one meaning for each key, one
encoding, numbers that every reader holds alike. The bytes stay as they came; changes are made in place, on single members.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from services.proxy.json_cost import MOST_VALUES, has_more_values
from services.proxy.surrogates import place_of_half

MAX_DEPTH = 100
MAX_DIGITS = 1000


def _number(text: str) -> float:
    """A number with a fraction or an exponent. Raises ValueError where no double holds it.

    msgspec's own way takes 12 us for `1e308`, 1.8 s for a mebibyte of them, and Python's 0.3 us.
    """
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    number = float(text)
    if number in _NO_NUMBERS:
        raise ValueError("a number is out of range")
    return number


_NO_NUMBERS = (float("inf"), float("-inf"))
_decode = msgspec.json.Decoder(float_hook=_number).decode
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ESCAPED_COLON = re.compile(rb"\\u003[aA]")
# What stands before the value of a member: its key, and the comma or the brace before that.
_opening = re.compile(rb'[ \t\n\r]*[{,][ \t\n\r]*"[^"\\]*(?:\\.[^"\\]*)*"[ \t\n\r]*:[ \t\n\r]*').match
# Looked for at the beginnings of runs only: tried at each digit, runs of nearly this length would cost their length squared.
_DIGITS = re.compile(rb"(?<![0-9.])[0-9.]{%d}" % MAX_DIGITS)
_SAMPLES = 8
_SAMPLED_DIGITS = re.compile(rb"[0-9.]{%d}" % _SAMPLES)
_PIECE = 64 * 1024


class _Fault(Exception):
    """What is wrong with the text, in words for its sender."""


@dataclass(slots=True)
class Places:
    """Where the values of some members of an object stand in its text."""

    first: int
    """Where a first member may be put in."""
    empty: bool
    """Whether the object has no members."""
    spans: dict[str, tuple[int, int]]
    """Beginning and end of the value of each of those members that are there."""


@dataclass(slots=True)
class Document:
    """One JSON object."""

    body: bytes
    """The whole, as it came."""
    members: dict[str, Any]
    """Its members, decoded."""
    has_plain_keys: bool = False
    """Whether it is known that all keys, at any depth, are ASCII without capitals."""

    def edited(self, changes: Mapping[str, Any]) -> bytes:
        """The body with these members set to other values, and every other byte as it came."""
        return edited(self.body, find_places(self.body, changes), changes)


def edited(body: bytes, places: Places, changes: Mapping[str, Any]) -> bytes:
    """The body of an object with these members set to other values, and every other byte as it came.

    places: of at least these members.
    """
    new = b"".join(
        b"%b:%b," % (msgspec.json.encode(key), msgspec.json.encode(value))
        for key, value in changes.items()
        if key not in places.spans
    )
    first = places.first
    view = memoryview(body)  # so that a body of 32 MB is copied once
    parts: list[bytes | memoryview] = [view[:first], new[:-1] if places.empty else new]
    kept = first
    for (start, end), value in sorted((places.spans[key], value) for key, value in changes.items() if key in places.spans):
        parts += [view[kept:start], msgspec.json.encode(value)]
        kept = end
    parts.append(view[kept:])
    return b"".join(parts)


def find_places(body: bytes, keys: Collection[str]) -> Places:
    """Where the values of these members stand in an object that is known to be valid."""
    spans: dict[str, tuple[int, int]] = {}
    position = 0
    members = _decode_raw(body)
    left = len(members.keys() & keys)
    for key, value in members.items():
        if not left:
            break
        opening = _opening(body, position)
        assert opening is not None
        position = opening.end() + len(value)
        if key in keys:
            spans[key] = (opening.end(), position)
            left -= 1
    return Places(first=body.index(b"{") + 1, empty=not members, spans=spans)


def read(body: bytes, *, most_values: int = MOST_VALUES) -> Document:
    """The object in these bytes. Raises InvalidRequest that names the fault. most_values: how many JSON values it may hold."""
    if has_more_values(body, most_values):
        raise InvalidRequest(f"The body holds more than {most_values} JSON values.")
    try:
        return Document(body, *_read(body))
    except _Fault as fault:
        message = str(fault)
    except UnicodeDecodeError:
        message = "a string is not UTF-8"
    except RecursionError:
        message = f"it is nested deeper than {MAX_DEPTH} levels"
    except msgspec.DecodeError as error:  # also ValidationError: a number that no double holds
        if (half := place_of_half(body)) is not None:
            raise half from None
        message = str(error).removeprefix("JSON is malformed: ")
        message = message[:1].lower() + message[1:]
    raise InvalidRequest(f"The body is not valid JSON: {message}.")


def _read(body: bytes) -> tuple[dict[str, Any], bool]:
    """The members, and whether all keys are plain."""
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _Fault("it begins with a byte order mark; send plain UTF-8")
    if not body:
        raise _Fault("it is empty")
    members = _decode(body)
    if not isinstance(members, dict):
        raise _Fault("its top level is not an object")
    # Each member has a colon of its own, and every other colon stands in a string. The decoder keeps the last of members with
    # the same key, so what it dropped shows as colons that nothing of the result accounts for. A colon that is written as an
    # escape would count in the result and not in the text: such bodies are read by the slow way.
    colons, has_plain_keys = _colons(members)
    if _ESCAPED_COLON.search(body) is not None or colons != body.count(b":") or _has_many_digits(body):
        _read_slowly(body)
    return members, has_plain_keys


def _has_many_digits(body: bytes) -> bool:
    """Whether there is a run of digits longer than any number may be; it may stand in a string."""
    if len(body) <= MAX_DIGITS:
        return False
    # Such a run covers eight neighbours at least among every 125th byte, which are quickly looked at.
    if _SAMPLED_DIGITS.search(body[:: MAX_DIGITS // _SAMPLES]) is None:
        return False
    # Piece by piece, each with room for a run that begins in it, so that no single step holds up other threads.
    return any(_DIGITS.search(body, start, start + _PIECE + MAX_DIGITS) is not None for start in range(0, len(body), _PIECE))


def _colons(members: dict[str, Any]) -> tuple[int, bool]:
    """How many colons the text of this object has at the least, and whether all keys are ASCII without capitals.

    Raises _Fault where it is nested too deep.
    """
    colons = 0
    has_plain_keys = True
    level: list[Any] = [members]
    for _ in range(MAX_DEPTH):
        deeper = []
        keys: list[str] = []
        for container in level:
            values = container
            if type(container) is dict:
                colons += len(container)
                keys += container
                values = container.values()
            for value in values:
                kind = type(value)
                if kind is str:
                    if ":" in value:
                        colons += value.count(":")
                elif kind is dict or kind is list:
                    deeper.append(value)
        written = "".join(keys)
        colons += written.count(":")
        has_plain_keys = has_plain_keys and written.isascii() and written == written.lower()
        if not deeper:
            return colons, has_plain_keys
        level = deeper
    raise _Fault(f"it is nested deeper than {MAX_DEPTH} levels")


def _read_slowly(body: bytes) -> None:
    """Raises _Fault for a repeated key and for a number of too many digits. The body is valid JSON otherwise."""
    json.loads(body, object_pairs_hook=_unique, parse_float=_short, parse_int=_short)


def _short(digits: str) -> None:
    if len(digits) > MAX_DIGITS:
        raise _Fault(f"a number has more than {MAX_DIGITS} digits")


def _unique(pairs: list[tuple[str, Any]]) -> None:
    keys: set[str] = set()
    for key, _ in pairs:
        if key in keys:
            raise _Fault(f"the key {json.dumps(key[:50])} stands twice in one object")
        keys.add(key)
