"""OpenAI's usage object, as OpenAI and those who are compatible with it write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from gateway import usage as units
from services.proxy.dialects.tolerant_json import read_tolerantly

MAX_TEXT = 4096


@dataclass(frozen=True, slots=True)
class Usage:
    """What a provider says that a call used."""

    items: dict[str, int]
    """Counts by unit, parts inside their whole."""
    whole: bool
    """Whether both sides are there."""
    plausible: bool
    """Whether every number can be meant: a whole number from 0 to a billion."""
    text: str
    """The object as it came, for the record; empty where it is too long."""


class _Implausible(Exception):
    """A count that nobody can have meant."""


def read_usage(raw: bytes) -> Usage | None:
    """The usage in this JSON text; None: the provider says nothing."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            value = read_tolerantly(raw)
        except ValueError:
            return None
    if not isinstance(value, dict):
        return None
    text = raw.decode("utf-8", "replace") if len(raw) <= MAX_TEXT else ""
    try:
        items, whole = _items(value)
    except _Implausible:
        return Usage({}, whole=False, plausible=False, text=text)
    return Usage(items, whole=whole, plausible=True, text=text)


def _items(value: dict[str, Any]) -> tuple[dict[str, int], bool]:
    into = _first(value, "prompt_tokens", "input_tokens")
    out = _first(value, "completion_tokens", "output_tokens")
    of_input = _object(value, "prompt_tokens_details", "input_tokens_details")
    of_output = _object(value, "completion_tokens_details", "output_tokens_details")
    cached = _first(of_input, "cached_tokens") or _first(value, "prompt_cache_hit_tokens") or 0
    written = _first(of_input, "cache_write_tokens", "cache_creation_tokens") or 0
    reasoning = _first(of_output, "reasoning_tokens") or 0
    items: dict[str, int] = {}
    if into is not None:
        # Some count what was read from the cache beside the input, not inside it.
        items[units.INPUT] = into + cached if cached > into else into
        _add_part(items, units.CACHED_INPUT, units.INPUT, cached)
        _add_part(items, units.CACHE_WRITE, units.INPUT, written)
        _add_part(items, units.INPUT_AUDIO, units.INPUT, _first(of_input, "audio_tokens") or 0)
    if out is not None:
        # Some count reasoning beside the completion: then the total tells, or the part that is larger than its whole.
        beside = reasoning > out or (reasoning > 0 and _first(value, "total_tokens") == (into or 0) + out + reasoning)
        items[units.OUTPUT] = out + reasoning if beside else out
        _add_part(items, units.REASONING, units.OUTPUT, reasoning)
        _add_part(items, units.OUTPUT_AUDIO, units.OUTPUT, _first(of_output, "audio_tokens") or 0)
    return items, into is not None and out is not None


def _add_part(items: dict[str, int], unit: str, of: str, count: int) -> None:
    if count:
        items[unit] = min(count, items[of])


def _object(value: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        found = value.get(name)
        if isinstance(found, dict):
            return found
    return {}


def _first(value: dict[str, Any], *names: str) -> int | None:
    """The first of these members that is there. Raises _Implausible for what is no count."""
    for name in names:
        found = value.get(name)
        if found is None:
            continue
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if type(found) is not int or not 0 <= found <= units.MAX_COUNT:
            raise _Implausible
        return found
    return None
