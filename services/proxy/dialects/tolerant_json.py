"""Reading a provider's JSON as far as it goes. Callers get its bytes as they came; this is only what we read of them."""

from __future__ import annotations

import json
from typing import Any, Final

_LONG: Final = 400
"""Digits beyond which a number is read as a float: Python refuses whole numbers of more than 4,300."""


def read_tolerantly(data: bytes) -> Any:
    """The value in a JSON text that a strict reader refuses. Raises ValueError where it is no JSON at all.

    Taken as they are: halves of surrogate pairs (models emit them where an emoji is split over two deltas), bad UTF-8, control
    characters in strings, NaN, and numbers beyond what a float holds, which become infinite.
    """
    text = data.decode("utf-8-sig", "replace")
    try:
        try:
            return json.loads(text, strict=False)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a whole number of too many digits
            return json.loads(text, strict=False, parse_int=_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONG else float(digits)
