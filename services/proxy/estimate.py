"""How many tokens a text is, where no provider says so: within a fifth for prose in European languages and for code.

Written against the vocabulary of current OpenAI models (o200k): common English words are one token each, words of other
languages are cut into pieces, digits go by three, East Asian characters are most of a token each. Figures in
`tests/proxy/test_metering.py`.
"""

from __future__ import annotations

import re
from math import ceil

# One match is what a tokenizer would not look across: a word with its leading blank, up to three digits, a run of signs, white
# space. Every match is at least one token.
_PIECES = re.compile(r"[^\W\d_]+|\d{1,3}|[^\w\s]+|_+|\n\s*|\s{2,}|\s(?=\d)")
_PLAIN_WORD = 9
"""Letters up to which an ASCII word counts as one token."""
_OTHER_WORD = 6
"""The same in a text that writes letters with marks now and then, and so is in another language than English."""
_MARKED = re.compile(r"[\u00c0-\u024f]")
_MORE = 5.5
"""Letters of an ASCII word beyond those, to a token."""


_LONG = 32 * 1024
"""Characters beyond which a text is judged by samples."""
_SAMPLES = 8
_SAMPLE = 2048


def tokens_of(text: str) -> int:
    """About how many tokens this text is; at least 1 unless it is empty."""
    if not text:
        return 0
    if len(text) > _LONG:
        step = len(text) // _SAMPLES
        sample = "".join(text[start : start + _SAMPLE] for start in range(0, step * _SAMPLES, step))
        return ceil(_count(sample) * len(text) / len(sample))
    return max(1, ceil(_count(text)))


def _count(text: str) -> float:
    total = 0.0
    plain = _PLAIN_WORD if text.isascii() or len(_MARKED.findall(text)) * 200 < len(text) else _OTHER_WORD
    for piece in _PIECES.findall(text):
        size = len(piece)
        if piece.isascii():
            if piece.isalpha():
                total += 1 if size <= plain else 1 + (size - plain) / _MORE
            elif piece.isspace() or piece.isdigit():
                total += 1
            else:
                total += 1 if size <= 2 else size / 2.5
        else:
            total += _foreign(piece, size)
    return total


def _foreign(piece: str, size: int) -> float:
    """Tokens of a piece with characters beyond ASCII."""
    if max(piece) >= "\u2e80":  # East Asian scripts, emoji
        return size * 0.85
    return max(1.0, size / 3.5)
