r"""Half of a surrogate pair in a body: which field holds it.

Programs that cut a text between the two halves of an emoji send `"\ud83d"`, which is valid JSON and no Unicode text. Providers
read it in different ways, so the body is refused; the strict reader only knows the byte, and its sender needs the field.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gateway.errors import InvalidRequest

_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_half_in = re.compile("[\ud800-\udfff]").search
_LONGEST = 100


def place_of_half(body: bytes) -> InvalidRequest | None:
    """The refusal of a body in which a text holds half of a surrogate pair; None where this is not what is wrong with it."""
    if _ESCAPED_HALF.search(body) is None:
        return None
    try:
        value = json.loads(body, parse_float=_no_number, parse_int=_no_number)
    except (ValueError, RecursionError):
        return None
    place = _find(value)
    if place is None:
        return None
    name = place[:_LONGEST].encode("utf-8", "replace").decode()
    return InvalidRequest(
        f"`{name}` holds half of a surrogate pair: an emoji or another character was cut in two. Send whole characters.",
        metadata={"param": name},
    )


def _no_number(_: str) -> None:
    return None


def _find(value: Any) -> str | None:
    """The first field with half of a pair in it or in its key, such as `messages[0].content`; None: there is none."""
    waiting = [("", value)]
    while waiting:
        place, found = waiting.pop()
        if isinstance(found, str):
            if _half_in(found) is not None:
                return place
        elif isinstance(found, list):
            waiting += [(f"{place}[{number}]", item) for number, item in reversed(list(enumerate(found)))]
        elif isinstance(found, dict):
            inside = [(f"{place}.{key}" if place else key, key, item) for key, item in found.items()]
            for name, key, _ in inside:
                if _half_in(key) is not None:
                    return name
            waiting += [(name, item) for name, _, item in reversed(inside)]
    return None
