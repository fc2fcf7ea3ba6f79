"""OpenAI's answers as the meter reads them: whole completions, and the chunks of a stream."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from services.proxy.dialects.tolerant_json import read_tolerantly

DONE = b"[DONE]"


class _Piece(msgspec.Struct, gc=False):
    """A message, or the part of one that a chunk adds: whatever of it was generated."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class _Choice(msgspec.Struct, gc=False):
    """One of the answers."""

    delta: _Piece | None = None
    message: _Piece | None = None
    finish_reason: Any = None


NO_USAGE = msgspec.Raw(b"")
"""What `usage` is where a chunk has none."""


class Chunk(msgspec.Struct, gc=False):
    """A chunk or a whole completion."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = NO_USAGE
    model: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(Chunk).decode


def read_chunk(data: bytes) -> Chunk | None:
    """The chunk in this JSON text; None where it is no object.

    What a strict reader refuses is read as far as it goes, and fields of unexpected types count as absent: the caller gets the
    bytes as they came, so nothing of them may go uncounted.
    """
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_loosely(data)


def _read_loosely(data: bytes) -> Chunk | None:
    try:
        value = read_tolerantly(data)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    listed = value.get("choices")
    choices = []
    for choice in listed if isinstance(listed, list) else []:
        if isinstance(choice, dict):
            piece = choice.get("delta", choice.get("message"))
            fields = {name: piece.get(name) for name in _Piece.__struct_fields__} if isinstance(piece, dict) else {}
            choices.append(_Choice(delta=_Piece(**fields), finish_reason=choice.get("finish_reason")))
    usage = value.get("usage")
    return Chunk(
        choices=choices,
        usage=msgspec.Raw(json.dumps(usage, separators=(",", ":")).encode()) if usage is not None else NO_USAGE,
        model=value.get("model"),
        error=value.get("error"),
    )


def usage_of(chunk: Chunk) -> bytes:
    """The text of its usage; empty: it has none, or a null."""
    if chunk.usage is NO_USAGE:
        return b""
    raw = bytes(chunk.usage)
    return raw if raw != b"null" else b""


def texts_of(choices: list[_Choice]) -> list[str]:
    """All text of these choices that was generated."""
    texts: list[str] = []
    for choice in choices:
        piece = choice.delta
        if piece is None:
            piece = choice.message
            if piece is None:
                continue
        content = piece.content
        if type(content) is str:
            if content:
                texts.append(content)
        elif content is not None:
            _collect(texts, content)
        if (  # spelt out, as this is looked at for each token of each stream
            piece.tool_calls is None
            and piece.reasoning_content is None
            and piece.reasoning is None
            and piece.refusal is None
            and piece.function_call is None
            and piece.audio is None
        ):
            continue
        _collect(
            texts,
            [piece.reasoning_content or piece.reasoning, piece.refusal, piece.tool_calls, piece.function_call, piece.audio],
        )
    return texts


_NOT_GENERATED = frozenset({"id", "type", "index", "data"})


def _collect(texts: list[str], value: Any) -> None:
    """The strings in a value, without ids, kinds and the bytes of audio."""
    if isinstance(value, str):
        if value:
            texts.append(value)
    elif isinstance(value, list):
        for item in value:
            _collect(texts, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in _NOT_GENERATED:
                _collect(texts, item)
