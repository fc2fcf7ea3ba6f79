"""What a body would cost to read, found out before it is read: how many JSON values it holds.

Each value but the first stands behind a comma or inside a bracket, so the commas and opening brackets outside of strings count
them. Those inside of strings count too for a first look, which takes a thousandth of the time of reading.
"""

from __future__ import annotations

import re
from typing import Final

MOST_VALUES: Final = 100_000
"""Values that a body may hold: members of objects and items of arrays, empty containers included."""

_PIECE: Final = 256 * 1024
_SEPARATORS: Final = b",[{"
# Each digit, each letter that begins an exponent, and everything else.
_SHAPES: Final = bytes(
    b"0"[0] if chr(code) in "0123456789." else b"e"[0] if chr(code) in "eE" else b" "[0] for code in range(256)
)
_escapes = re.compile(rb"\\*").match


def separators(body: bytes) -> int:
    """Commas and opening brackets, those in strings included: at least as many as there are values."""
    return len(body) - len(body.translate(None, _SEPARATORS))


def has_more_values(body: bytes, most: int) -> bool:
    """Whether a body holds more values than this. What is no JSON at all may count as anything."""
    if len(body) <= most or separators(body) <= most:
        return False
    return _count(body, most) > most


def has_more_exponents(body: bytes, most: int) -> bool:
    """Whether a body may hold more numbers with an exponent than this: those in strings count too."""
    return len(body) > most and separators(body) > most and body.translate(_SHAPES).count(b"0e") > most


def _count(body: bytes, most: int) -> int:
    """Commas and opening brackets outside of strings; at least one more than `most` where it stops early."""
    found, start, inside = 0, 0, False
    while start < len(body) and found <= most:
        # Piece by piece, so that no single step holds up other threads. An escape is not cut in two.
        end = start + _PIECE
        if end < len(body) and body[end - 1] == 0x5C:
            end = _end_of_escapes(body, end) + 1
        piece = body[start:end]
        if b"\\" in piece:
            piece = piece.replace(rb"\\", b"").replace(rb"\"", b"")
        parts = piece.split(b'"')
        found += separators(b"".join(parts[inside::2]))
        inside ^= len(parts) % 2 == 0
        start = end
    return found


def _end_of_escapes(body: bytes, position: int) -> int:
    found = _escapes(body, position)
    return found.end() if found else position
