"""Model names and the patterns that stand for many of them: `gpt-4*` is every name that begins with `gpt-4`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

MAX_PATTERNS = 1000
MAX_NAME_LENGTH = 256


def parse_models(value: str | Iterable[str]) -> tuple[str, ...]:
    """Patterns from a list, or from a comma-separated text.

    White space around a name is dropped, and so are empty and repeated names.
    Raises ValueError on too many or too long names, and on control characters.
    """
    names = value.split(",") if isinstance(value, str) else list(value)
    patterns = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"at most {MAX_PATTERNS} model names")
    for pattern in patterns:
        if len(pattern) > MAX_NAME_LENGTH:
            raise ValueError(f"a model name has at most {MAX_NAME_LENGTH} characters")
        if not pattern.isprintable() or "," in pattern:
            raise ValueError("a model name has printable characters only, and no comma")
    return patterns


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns is this name, or stands for it. No patterns at all stand for every name."""
    expression = _compiled(tuple(patterns))
    return expression is None or expression.fullmatch(name) is not None


@lru_cache(maxsize=2048)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    if not patterns:
        return None
    # A run of stars is one star: `a**b` would cost time that grows with the square of the name.
    parts = (".*".join(re.escape(part) for part in re.sub(r"\*+", "*", pattern).split("*")) for pattern in patterns)
    return re.compile("|".join(f"(?:{part})" for part in parts), re.DOTALL)


@lru_cache(maxsize=4096)
def models_of_text(text: str | None) -> tuple[str, ...]:
    """Patterns from a database column; unreadable ones are left out rather than opening everything.

    A text that holds names of which none can be read stands for no model at all (a pattern that nothing matches).
    """
    if not text or not text.strip():
        return ()
    try:
        patterns = parse_models(text)
    except ValueError:
        patterns = ()
    return patterns or ("\0",)
