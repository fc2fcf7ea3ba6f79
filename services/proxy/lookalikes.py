"""Keys that some readers of JSON take for others: `Model` for `model`.

Go's encoding/json, which Ollama and other providers use, matches keys without regard to case, and of several matches the last
one counts. So a body with `"model": "a"` and `"Model": "b"` would be checked and priced as a and served as b. A key that equals
a checked one when both are folded, but is not that key, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.errors import InvalidRequest

# Letters beyond ASCII that fold to ASCII ones. Go knows the long s and the Kelvin sign; Java's equalsIgnoreCase both letters i.
_SPECIAL: Final = str.maketrans({"\u017f": "s", "\u212a": "k", "\u0131": "i", "\u0130": "i"})


def fold(key: str) -> str:
    """The key as a reader without regard to case compares it."""
    return key.lower() if key.isascii() else key.translate(_SPECIAL).lower()


def refuse_lookalikes(members: Iterable[str], checked: frozenset[str], place: str = "", *, suffix: str = "\n") -> None:
    """Raises InvalidRequest that names a key which only looks like a checked one.

    members: the keys of an object. checked: those in lower case that it is asked for. place: where the object is, such as
    `stream_options`. suffix: what ends further keys that it is asked for, in lower case.
    """
    for key in members:
        if key in checked:
            continue
        folded = key.lower() if key.isascii() else fold(key)
        if folded in checked or (folded.endswith(suffix) and not key.endswith(suffix)):
            name = f"{place}.{key}" if place else key
            raise InvalidRequest(
                f"`{name[:100]}` looks like `{folded[:100]}`, and some providers read both as the same key. "
                "Write it in lower case.",
                metadata={"param": name[:100]},
            )
