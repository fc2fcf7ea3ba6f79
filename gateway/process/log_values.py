"""What the values of a log line may be: cut where they are too long, hidden where they are secret, always valid JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

MAX_VALUE: Final = 2_000
MAX_STACK: Final = 16_000
"""The longest text that an event keeps, and the longest stack trace, in characters; the rest is cut."""

_MAX_DEPTH: Final = 6
_MAX_ITEMS: Final = 100
_HIDDEN: Final = "[hidden]"
_SECRET_WORDS: Final = (
    "password",
    "secret",
    "authorization",
    "cookie",
    "api_key",
    "api-key",
    "apikey",
    "session_token",
    "private_key",
)
_SECRET_NAMES: Final = frozenset({"token", "key", "plain", "credential", "credentials", "bearer"})
# Our own tokens, those of providers whose keys have a shape, and credentials as headers carry them.
_SECRET_SHAPES: Final = re.compile(
    r"\b(?:sk|rk|gsk|gzs|xai|pplx|hf)[-_][a-z0-9_-]{8,}|\baiza[a-z0-9_-]{20,}|\b(?:bearer|basic) +[^\s\\\"']{6,}", re.IGNORECASE
)
_MARKS: Final = (
    "sk-",
    "sk_",
    "rk-",
    "rk_",
    "gzs-",
    "gzs_",
    "xai-",
    "xai_",
    "pplx-",
    "pplx_",
    "hf-",
    "hf_",
    "aiza",
    "bearer ",
    "basic ",
)
_STACKS: Final = frozenset({"exception", "stack"})


def to_json(event: Mapping[str, Any]) -> str:
    """One line of ASCII, whatever the event holds."""
    return hide(_encode(clean(event)))


def clean(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event with values that JSON can hold."""
    cleaned: dict[str, Any] = {}
    for key, value in event.items():
        kind = type(value)
        if _is_secret(key) and value:
            cleaned[key] = _HIDDEN
        elif kind is int or kind is float:
            cleaned[key] = _number(value)
        elif kind is str and len(value) <= MAX_VALUE and value.isascii():
            cleaned[key] = value
        else:
            cleaned[key] = _safe(value, 0, MAX_STACK if key in _STACKS else MAX_VALUE)
    return cleaned


def hide(line: str) -> str:
    """The line without what looks like a key. What it puts there instead keeps JSON valid."""
    lowered = line.lower()
    for mark in _MARKS:  # quicker than the expression, which most lines do not need
        if mark in lowered:
            return _SECRET_SHAPES.sub(_HIDDEN, line)
    return line


def _safe(value: Any, depth: int, limit: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return _number(value)
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        items = list(value.items())[:_MAX_ITEMS]
        return {
            name: _HIDDEN if _is_secret(name) and item else _safe(item, depth + 1, limit)
            for name, item in ((_cut(_text(key), limit), item) for key, item in items)
        }
    if isinstance(value, (list, tuple, set, frozenset)) and depth < _MAX_DEPTH:
        return [_safe(item, depth + 1, limit) for item in list(value)[:_MAX_ITEMS]]
    return _cut(_text(value), limit)


def _number(value: float) -> float | str:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value) if value.bit_length() < 10_000 else "[huge number]"
    return value if value - value == 0 else str(value)  # NaN and infinity are no JSON


def _text(value: Any) -> str:
    try:
        # A lone surrogate has no UTF-8, and what reads the line may refuse its escape.
        return str(value).encode("utf-8", "replace").decode("utf-8")
    except Exception as error:  # whatever a foreign __str__ raises, the line is written
        return f"[unprintable {type(value).__name__}: {type(error).__name__}]"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    lowered = name.lower()
    return lowered in _SECRET_NAMES or any(word in lowered for word in _SECRET_WORDS)


_encode: Final = json.JSONEncoder(ensure_ascii=True, check_circular=False, default=_text).encode
