"""OpenAI's dialect: what a chat completion asks for, and what may be changed in it on its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from services.proxy.bounds import InputBound, chat_bound
from services.proxy.dialects.openai_keys import refuse_lookalikes_in_chat
from services.proxy.strict_json import Document, Places, edited, find_places

NAME = "openai"
CHAT = "/v1/chat/completions"
LIMITS = ("max_tokens", "max_completion_tokens")
"""Where a caller states the output limit; the smaller counts where both stand."""
HIGHEST_LIMIT = 10**12
"""Above this a stated limit is as good as none; it is what the ledger takes at the most."""
MOST_CHOICES = 128
_SECOND_MODELS = ("models", "fallbacks")


_CHANGED = frozenset({"model", "stream_options", *LIMITS})
"""What may be changed on the way to a provider."""


@dataclass(slots=True)
class ChatCall:
    """A chat completion as it was asked for."""

    body: bytes
    """As it came."""
    model: str
    """The name that the caller wrote: what `allowed_models` is matched against."""
    stream: bool
    usage_asked: bool
    """Whether the caller wants the usage chunk of a stream."""
    choices: int
    stated: dict[str, int]
    """The output limits that the caller stated, each under its name; in tokens for one choice."""
    thinking: int
    """Tokens set aside for thinking, inside the limit."""
    bound: InputBound
    with_usage: bytes
    """The member `stream_options` with usage asked for, as JSON."""
    places: Places | None = None
    """Where in the body what may be changed stands; None: not looked for yet."""

    @property
    def limit(self) -> int | None:
        """The output limit that holds; None: none was stated."""
        return min(HIGHEST_LIMIT, *self.stated.values()) if self.stated else None

    def locate(self) -> Places:
        """Finds what may be changed in the body."""
        if self.places is None:
            self.places = find_places(self.body, _CHANGED)
        return self.places

    def upstream_body(self, model: str, granted: int | None, parameter: str) -> bytes:
        """The body for a provider: as it came, but for the model's name there, the granted limit, and that usage is asked.

        granted: the output limit that the ledger grants; None: as asked. parameter: where it goes when none was stated.
        """
        changes: dict[str, Any] = {}
        if model != self.model:
            changes["model"] = model
        if self.stream and not self.usage_asked:
            changes["stream_options"] = msgspec.Raw(self.with_usage)
        limit = self.limit if granted is None else granted
        if limit is not None:
            for name in self.stated or [parameter]:
                if self.stated.get(name) != limit and not (granted is None and len(self.stated) == 1):
                    changes[name] = limit
        return edited(self.body, self.locate(), changes) if changes else self.body


def read_chat(document: Document) -> ChatCall:
    """What a chat completion asks for. Raises InvalidRequest that names the field and what it takes."""
    members = document.members
    if not document.has_plain_keys:
        refuse_lookalikes_in_chat(members)
    model = members.get("model")
    if not isinstance(model, str) or not model or len(model) > 256 or not model.isprintable():
        raise _wrong("model", "the name of a model, 1 to 256 printable characters")
    for name in _SECOND_MODELS:
        if members.get(name) is not None:
            raise _wrong(name, "left out: the gateway judges, prices and routes one model, that of `model`")
    messages = members.get("messages")
    if not isinstance(messages, list) or not messages or not all(type(message) is dict for message in messages):
        raise _wrong("messages", "a list of one or more objects")
    stream = members.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _wrong("stream", "true or false")
    options = members.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _wrong("stream_options", "an object")
    usage_asked = options.get("include_usage") if options else None
    if usage_asked is not None and not isinstance(usage_asked, bool):
        raise _wrong("stream_options.include_usage", "true or false")
    asks = stream is True and usage_asked is not True
    return ChatCall(
        body=document.body,
        model=model,
        stream=stream is True,
        usage_asked=usage_asked is True,
        choices=_choices(members),
        stated={name: limit for name in LIMITS if (limit := _limit(members, name)) is not None},
        thinking=_thinking(members),
        bound=chat_bound(members),
        with_usage=msgspec.json.encode({**(options or {}), "include_usage": True}) if asks else b"",
    )


def _limit(members: dict[str, Any], name: str) -> int | None:
    value = members.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise _wrong(name, "a whole number of 1 or more")
    return min(value, HIGHEST_LIMIT + 1)  # more than any grant, so that it is replaced by what is granted


def _choices(members: dict[str, Any]) -> int:
    most = 1
    for name in ("n", "best_of"):
        value = members.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= MOST_CHOICES:
            raise _wrong(name, f"a whole number from 1 to {MOST_CHOICES}")
        most = max(most, value)
    return most


def _thinking(members: dict[str, Any]) -> int:
    """Thinking tokens as OpenAI-compatible servers take them: `thinking.budget_tokens`, `reasoning.max_tokens`."""
    for name, inner in (("thinking", "budget_tokens"), ("reasoning", "max_tokens")):
        options = members.get(name)
        value = options.get(inner) if isinstance(options, dict) else None
        if type(value) is int and value > 0:
            return min(value, HIGHEST_LIMIT)
    return 0


def _wrong(field: str, takes: str) -> InvalidRequest:
    return InvalidRequest(f"`{field}` must be {takes}.", metadata={"param": field})
