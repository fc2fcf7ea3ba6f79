"""The most tokens that a text can be: no token is shorter than a byte of the text, raw or in its NFKC form.

Some tokenizers bring a text to NFKC first, which can make it longer (U+FDFA: 3 bytes become 33). To normalize it here would let
its sender choose the cost: Python takes time that is quadratic in a run of combining marks, 263 ms for 16,000 of them. So the
NFKC form is bounded from above: each character counts as its own NFKC form, and a combining mark as 4 bytes more, because it
can change how the characters around it are composed. A text whose pieces are normalized already counts as its raw bytes.

A text is read in pieces of 16,384 characters, so that the interpreter's lock is free for other threads between two of them.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import repeat
from typing import Final

PIECE: Final = 16_384
"""Characters that are looked at in one step."""
_PER_MARK: Final = 4
"""Bytes by which a combining mark can lengthen the characters around it. The longest case found is 3."""
_PLANES: Final = 0x20000
"""Code points from here on neither combine nor grow; a test looks at all of them."""


def text_bytes(text: str) -> int:
    """An upper bound of the tokens in a text: its bytes in UTF-8, raw or in NFKC, whichever are more."""
    if text.isascii():
        return len(text)
    grown = 0
    previous_counted = False
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        # A mark at the beginning composes with the piece before, so neither of them can be judged alone.
        begins_with_mark = start > 0 and unicodedata.combining(piece[0]) != 0
        if begins_with_mark and not previous_counted:
            grown += _growth(text[start - PIECE : start])
        previous_counted = begins_with_mark or not unicodedata.is_normalized("NFKC", piece)
        if previous_counted:
            grown += _growth(piece)
    return len(text.encode("utf-8", "surrogatepass")) + grown


def _growth(piece: str) -> int:
    """Bytes by which NFKC can lengthen this piece at the most: 65 ns a character, whatever they are."""
    return sum(map(_growing().get, piece, repeat(0)))


@cache
def _growing() -> dict[str, int]:
    """Each character that NFKC can make longer, and by how many bytes: some 3,000. It takes 30 ms, once in a process."""
    growing = {}
    for code in range(0x80, _PLANES):
        character = chr(code)
        more = _PER_MARK if unicodedata.combining(character) else 0
        if unicodedata.decomposition(character):
            normal = unicodedata.normalize("NFKC", character).encode("utf-8", "surrogatepass")
            more += max(0, len(normal) - len(character.encode("utf-8", "surrogatepass")))
        if more:
            growing[character] = more
    return growing


def prepare() -> None:
    """Makes the table of growing characters now, and not at the first text."""
    _growing()
