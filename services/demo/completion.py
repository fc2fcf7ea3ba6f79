"""What the demo provider answers: a request in, tokens and usage out. No I/O.

A token here is a word together with the white space before it, so they can be counted by hand: "Hello, old friend" has three.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

MODEL = "demo"
MAX_CHOICES = 128
MAX_TOKENS = 1_000_000  # more than that is a slip of the pen, and the reply is kept in memory

_TOKEN = re.compile(r"\s*\S+")
_ECHOED = 24  # words of the question that come back
_REPLY = (
    "This is the demo provider of Gateway Zero: no AI model has read your message. "
    'It began "{question}" and came through the gateway, was counted, and was charged to your client token. '
    "Give the gateway a provider's key, such as OPENAI_API_KEY, and a real model answers."
)


class BadRequest(ValueError):
    """The request cannot be answered. `param` names the field that is wrong."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What of a chat request the demo provider looks at."""

    model: str
    prompt_tokens: int
    question: str
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    max_tokens: int | None = None
    """The most tokens a choice may have; None: as many as the reply has."""
    min_tokens: int = 0
    """The fewest tokens a choice has, as vLLM names it: the reply starts over until it is that long."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of the answer."""

    tokens: tuple[str, ...]
    finish_reason: Literal["stop", "length"]

    @property
    def text(self) -> str:
        """All tokens in a row."""
        return "".join(self.tokens)


def tokens_of(text: str) -> list[str]:
    """The text cut into tokens. White space at the very end belongs to none."""
    return _TOKEN.findall(text)


def parse(body: Mapping[str, Any]) -> ChatRequest:
    """A chat request from its JSON object. Raises BadRequest with the field that is wrong."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("you must provide a model parameter", "model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' is a list of at least one message", "messages")
    texts = [_text(message, index) for index, message in enumerate(messages)]
    asked = [text for message, text in zip(messages, texts, strict=True) if message.get("role") == "user"]
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("'stream_options' is an object", "stream_options")
    limits = [_whole(body, name, 1, None) for name in ("max_tokens", "max_completion_tokens")]
    return ChatRequest(
        model=model,
        prompt_tokens=sum(len(tokens_of(text)) for text in texts),
        question=" ".join((asked or texts)[-1].split()[:_ECHOED]),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        choices=_whole(body, "n", 1, MAX_CHOICES) or 1,
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        min_tokens=_whole(body, "min_tokens", 0, MAX_TOKENS) or 0,
    )


def answer(request: ChatRequest) -> list[Choice]:
    """The choices of the answer, as many as were asked for, each within the caller's limit."""
    reply = tokens_of(_REPLY.format(question=request.question))
    whole = list(_repeated(reply, request.min_tokens)) if request.min_tokens > len(reply) else reply
    limit = request.max_tokens
    if limit is not None and limit < len(whole):
        return [Choice(tuple(whole[:limit]), "length")] * request.choices
    return [Choice(tuple(whole), "stop")] * request.choices


def usage(request: ChatRequest, completion_tokens: int) -> dict[str, int]:
    """The usage object for a request of which so many tokens were generated, all choices together."""
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": request.prompt_tokens + completion_tokens,
    }


def _repeated(reply: list[str], count: int) -> Iterator[str]:
    """The reply over and over, `count` tokens in all."""
    for index, token in enumerate(islice(cycle(reply), count)):
        yield f" {token}" if index and index % len(reply) == 0 else token


def _text(message: object, index: int) -> str:
    """All text of a message; any part that is no text counts as one word."""
    if not isinstance(message, dict):
        raise BadRequest("a message is an object", f"messages[{index}]")
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest("a message's content is text or a list of parts", f"messages[{index}].content")
    parts = [part if isinstance(part, dict) else {} for part in content]
    return " ".join(part["text"] if isinstance(part.get("text"), str) else "[part]" for part in parts)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise BadRequest(f"'{name}' is true or false", name)


def _whole(body: Mapping[str, Any], name: str, lowest: int, highest: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest or (highest is not None and value > highest):
        bounds = f"{lowest} or more" if highest is None else f"from {lowest} to {highest}"
        raise BadRequest(f"'{name}' is a whole number, {bounds}", name)
    return value
