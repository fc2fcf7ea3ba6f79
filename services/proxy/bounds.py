"""The most that a request can make a model read, and what in it has no bound at all.

The ledger holds money for these bounds before the call is made, so they err upwards: no token is shorter than a byte, neither
of the text as it is nor of its NFKC form, to which some tokenizers bring it first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.text_bound import text_bytes
from services.proxy.estimate import tokens_of

PER_MESSAGE = 16
"""Tokens that a provider puts around a message: role, separators, priming of the answer."""
PER_TOOL = 16
"""The same around a tool."""
TOOLS = 512
"""Tokens of the instructions that a provider adds when there are tools (346 are the most that one has published)."""
PER_IMAGE = 49_152
"""An image in the request itself: gpt-4o-mini counts 2,833 + 8 tiles of 5,667, the most of all published rules."""
PER_AUDIO = 256
"""Around a piece of audio."""
AUDIO_BYTES = 64
"""Characters of base64 to one audio token: 10 tokens a second against 8 kbit/s, the thinnest stream that MP3 knows, leave
over a hundred."""
PER_NUMBER = 24
"""Characters that a number, true, false or null is written with at the most."""
_SAMPLE = 1 << 14

_FREE_TIERS = frozenset({"auto", "default", "flex", "standard"})
_BOUNDED_TOOLS = frozenset({"function", "custom"})
_LINKS = frozenset({"file_id", "url"})


@dataclass(slots=True)
class InputBound:
    """What one request can cost on the input side."""

    ceiling: int = 0
    """Upper bound of the input in tokens, without what lies elsewhere."""
    elsewhere: bool = False
    """Whether a part of the input is not in the request: behind a URL, an id, or inside a file."""
    units: list[str] = field(default_factory=list)
    """Units beyond text that it can trigger."""
    endless: list[str] = field(default_factory=list)
    """Features without an upper bound of cost."""
    media: int = 0
    """Tokens that images and audio are likely to be."""
    texts: list[str] = field(default_factory=list)
    """Text that the model reads, in order; a share of each where there is very much of it."""
    characters: int = 0
    """Characters that `texts` stand for."""

    def estimate(self) -> int:
        """About how many input tokens the request is, for when the provider does not say."""
        text = "\n".join(self.texts)
        tokens = tokens_of(text)
        if self.characters > len(text):
            tokens = tokens * self.characters // max(1, len(text))
        return min(self.ceiling, tokens + self.media) if self.ceiling else tokens + self.media

    def thin(self) -> None:
        """Keeps a sample of the texts only, so that a long request is not held in memory while it is answered."""
        if self.characters <= _SAMPLE:
            return
        kept, room = [], _SAMPLE
        for text in self.texts:
            share = max(32, len(text) * _SAMPLE // self.characters)
            kept.append(text[:share])
            room -= share
            if room <= 0:
                break
        self.texts = kept

    def add_text(self, text: str) -> None:
        """Counts a text."""
        self.ceiling += text_bytes(text)
        self.characters += len(text)
        self.texts.append(text)

    def add_unit(self, unit: str) -> None:
        """Notes a unit."""
        if unit not in self.units:
            self.units.append(unit)


def chat_bound(members: dict[str, Any]) -> InputBound:
    """The bound of a chat completion. members: of its body, `messages` being a list of objects.

    `dialects/openai_keys.py` has the keys that are read here by name: add a new one there too.
    """
    bound = InputBound()
    for message in members["messages"]:
        _message(bound, message)
    for key, value in members.items():
        kind = type(value)
        if kind is str:
            if key != "model":
                bound.ceiling += text_bytes(value)
        elif (kind is dict or kind is list) and value and key not in {"messages", "metadata", "stream_options", "logit_bias"}:
            _add_json(bound, value)
    tools = [tool for key in ("tools", "functions") if isinstance(members.get(key), list) for tool in members[key]]
    if tools:
        bound.ceiling += TOOLS + PER_TOOL * len(tools)
    _note_units(bound, members)
    _note_endless(bound, members, tools)
    return bound


def _message(bound: InputBound, message: dict[str, Any]) -> None:
    bound.ceiling += PER_MESSAGE
    for key, value in message.items():
        kind = type(value)
        if kind is str:
            if key == "content":
                bound.add_text(value)
            else:
                bound.ceiling += text_bytes(value)
        elif kind is dict or kind is list:
            if key == "audio":  # an earlier answer in audio, by its id
                bound.elsewhere = True
                bound.add_unit("input_audio")
            _walk(bound, value)
        else:
            bound.ceiling += PER_NUMBER


def _walk(bound: InputBound, value: Any) -> None:
    """Counts whatever is in a part of a message. The depth is that of a body that was read."""
    if isinstance(value, list):
        for item in value:
            if isinstance(item, str):
                bound.add_text(item)
            else:
                _walk(bound, item)
    elif isinstance(value, dict):
        if not _is_media(bound, value):
            for key, item in value.items():
                bound.ceiling += text_bytes(key)
                if not isinstance(item, str):
                    _walk(bound, item)
                elif (key in _LINKS or key.endswith("_url")) and item:
                    bound.elsewhere = True
                else:
                    bound.add_text(item)
    else:
        bound.ceiling += PER_NUMBER


def _is_media(bound: InputBound, part: dict[str, Any]) -> bool:
    """Counts a part that is an image, audio or a file; False when it is none."""
    match part.get("type"):
        case "image_url" | "input_image":
            source = part.get("image_url")
            url = source.get("url") if isinstance(source, dict) else source
            if isinstance(url, str) and url[:5].lower() == "data:":
                bound.ceiling += PER_IMAGE
                bound.media += 1000
            else:
                bound.elsewhere = True
        case "input_audio":
            source = part.get("input_audio")
            data = source.get("data") if isinstance(source, dict) else None
            bound.add_unit("input_audio")
            if isinstance(data, str):
                bound.ceiling += PER_AUDIO + len(data) // AUDIO_BYTES
                bound.media += len(data) // (AUDIO_BYTES * 4)
            else:
                bound.elsewhere = True
        case "file" | "input_file":  # a small file can unfold to any number of pages
            bound.elsewhere = True
        case _:
            return False
    return True


def _add_json(bound: InputBound, value: Any) -> None:
    text = msgspec.json.encode(value).decode()
    bound.add_text(text)


def _note_units(bound: InputBound, members: dict[str, Any]) -> None:
    modalities = members.get("modalities")
    if members.get("audio") is not None or (isinstance(modalities, list) and "audio" in modalities):
        bound.add_unit("output_audio")


def _note_endless(bound: InputBound, members: dict[str, Any], tools: list[Any]) -> None:
    found = []
    tier = members.get("service_tier")
    if tier is not None and not (isinstance(tier, str) and tier in _FREE_TIERS):
        found.append(f"service_tier={_short(tier)}")
    if members.get("web_search_options") is not None:
        found.append("web_search")
    if members.get("plugins"):
        found.append("plugins")
    if members.get("prediction") is not None:  # what of it is rejected is charged as output beyond the limit
        found.append("prediction")
    for tool in tools:
        kind = tool.get("type", "function") if isinstance(tool, dict) else "unknown"
        if not (isinstance(kind, str) and kind in _BOUNDED_TOOLS):
            found.append(f"tools={_short(kind)}")
    bound.endless = list(dict.fromkeys(found))[:16]


def _short(value: Any) -> str:
    """A value that was not expected, as a word for a message."""
    return value[:40] if isinstance(value, str) else f"({type(value).__name__})"
