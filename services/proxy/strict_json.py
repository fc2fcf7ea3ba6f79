"""Strict JSON: what is checked is what is sent.

A body is read by exactly one set of rules, so that no provider can read it in another way: one meaning for each key, one
encoding, numbers that every reader holds alike. The bytes stay as they came; changes are made in place, on single members.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from services.proxy.json_cost import MOST_VALUES, has_too_many_values

MAX_DEPTH = 100
MAX_DIGITS = 1000

_decode = msgspec.json.Decoder().decode
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


class _TooManyValues(InvalidRequest):
    """Valid or not, it would take too long to read."""


@dataclass(slots=True)
class Document:
    """One JSON object."""

    body: bytes
    """The whole, as it came."""
    members: dict[str, Any]
    """Its members, decoded."""

    def edited(self, changes: Mapping[str, Any]) -> bytes:
        """The body with these members set to other values, and every other byte as it came."""
        body = self.body
        present = {key: value for key, value in changes.items() if key in self.members}
        if present:
            body = _replaced(body, present)
        new = b"".join(
            b"%b:%b," % (msgspec.json.encode(key), msgspec.json.encode(value))
            for key, value in changes.items()
            if key not in self.members
        )
        if not new:
            return body
        inside = body.index(b"{") + 1
        return body[:inside] + (new if self.members else new[:-1]) + body[inside:]


def read(body: bytes) -> Document:
    """The object in these bytes. Raises InvalidRequest that names the fault."""
    try:
        return Document(body, _read(body))
    except _Fault as fault:
        message = str(fault)
    except UnicodeDecodeError:
        message = "a string is not UTF-8"
    except RecursionError:
        message = f"it is nested deeper than {MAX_DEPTH} levels"
    except msgspec.DecodeError as error:  # also ValidationError: a number that no double holds
        message = str(error).removeprefix("JSON is malformed: ")
        message = message[:1].lower() + message[1:]
    raise InvalidRequest(f"The body is not valid JSON: {message}.")


def _read(body: bytes) -> dict[str, Any]:
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _Fault("it begins with a byte order mark; send plain UTF-8")
    if not body:
        raise _Fault("it is empty")
    if has_too_many_values(body):
        raise _TooManyValues(f"The body holds more than {MOST_VALUES} JSON values.")
    members = _decode(body)
    if not isinstance(members, dict):
        raise _Fault("its top level is not an object")
    # Each member has a colon of its own, and every other colon stands in a string. The decoder keeps the last of members with
    # the same key, so what it dropped shows as colons that nothing of the result accounts for. A colon that is written as an
    # escape would count in the result and not in the text: such bodies are read by the slow way.
    if _ESCAPED_COLON.search(body) is not None or _colons(members) != body.count(b":") or _has_many_digits(body):
        _read_slowly(body)
    return members


def _has_many_digits(body: bytes) -> bool:
    """Whether there is a run of digits longer than any number may be; it may stand in a string."""
    if len(body) <= MAX_DIGITS:
        return False
    # Such a run covers eight neighbours at least among every 125th byte, which are quickly looked at.
    if _SAMPLED_DIGITS.search(body[:: MAX_DIGITS // _SAMPLES]) is None:
        return False
    # Piece by piece, each with room for a run that begins in it, so that no single step holds up other threads.
    return any(_DIGITS.search(body, start, start + _PIECE + MAX_DIGITS) is not None for start in range(0, len(body), _PIECE))


def _colons(members: dict[str, Any]) -> int:
    """How many colons the text of this object has at the least. Raises _Fault where it is nested too deep."""
    colons = 0
    level: list[Any] = [members]
    for _ in range(MAX_DEPTH):
        deeper = []
        for container in level:
            values = container
            if type(container) is dict:
                colons += len(container) + "".join(container).count(":")
                values = container.values()
            for value in values:
                kind = type(value)
                if kind is str:
                    if ":" in value:
                        colons += value.count(":")
                elif kind is dict or kind is list:
                    deeper.append(value)
        if not deeper:
            return colons
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


def _replaced(body: bytes, changes: dict[str, Any]) -> bytes:
    """An object, known to be valid, with the values of some of its members exchanged."""
    parts, kept, position = [], 0, 0
    left = len(changes)
    for key, value in _decode_raw(body).items():
        opening = _opening(body, position)
        assert opening is not None
        start = opening.end()
        position = start + len(value)
        if key in changes:
            parts += [body[kept:start], msgspec.json.encode(changes[key])]
            kept = position
            left -= 1
            if not left:
                break
    parts.append(body[kept:])
    return b"".join(parts)
