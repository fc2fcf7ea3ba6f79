"""Which keys of a chat completion are read by name, and so may not be written in another case: see `lookalikes`.

What a caller names himself is left alone: arguments of tools, JSON schemas, `metadata`.
"""

from __future__ import annotations

from typing import Any

from services.proxy.lookalikes import refuse_lookalikes

_AT_THE_TOP = frozenset(
    {
        *("model", "models", "fallbacks", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
        *("n", "best_of", "thinking", "reasoning", "tools", "functions", "service_tier", "modalities", "audio"),
        *("web_search_options", "plugins", "prediction"),
    }
)
_IN_OPTIONS = {
    "stream_options": frozenset({"include_usage"}),
    "thinking": frozenset({"budget_tokens"}),
    "reasoning": frozenset({"max_tokens"}),
}
_IN_MESSAGE = frozenset({"content", "audio"})
_IN_PART = frozenset({"type", "image_url", "input_audio", "file_id", "url", "data"})
_LINK = "_url"
"""What the further keys of a part end with that name a link."""
_IN_TOOL = frozenset({"type"})
# Whatever a tool was called with: no provider looks for keys of its own in there.
_OPAQUE = frozenset({"arguments", "input"})


def refuse_lookalikes_in_chat(members: dict[str, Any]) -> None:
    """Raises InvalidRequest that names a key which only looks like one that is read. members: of the body, of any type."""
    refuse_lookalikes(members, _AT_THE_TOP)
    for name, checked in _IN_OPTIONS.items():
        if isinstance(options := members.get(name), dict):
            refuse_lookalikes(options, checked, name)
    for name in ("tools", "functions"):
        if isinstance(tools := members.get(name), list):
            for tool in tools:
                if isinstance(tool, dict):
                    refuse_lookalikes(tool, _IN_TOOL, f"{name}[]")
    if isinstance(messages := members.get("messages"), list):
        for message in messages:
            if isinstance(message, dict):
                refuse_lookalikes(message, _IN_MESSAGE, "messages[]")
                for value in message.values():
                    _look_into(value)


def _look_into(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _look_into(item)
    elif isinstance(value, dict):
        refuse_lookalikes(value, _IN_PART, suffix=_LINK)
        for key, item in value.items():
            if key not in _OPAQUE and isinstance(item, (dict, list)):
                _look_into(item)
