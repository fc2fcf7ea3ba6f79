"""What a call may be like: the arguments of `validate` and `call`, and of `record_usage`, in one place for all clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from gateway.text_bound import text_bytes
from gateway.usage import Outcome, Source

PER_TEXT = 16
"""Tokens that a provider puts around a message: role, separators, priming of the answer."""


class CallTerms(TypedDict, total=False):
    """What is known of a call before it is made. One of `input_tokens` and `input_text` is needed; given both, they add up."""

    input_tokens: int
    """An upper bound of the input, in tokens."""
    input_text: str | Sequence[str]
    """The text that is read: it counts as its bytes, as no token is shorter, and 16 a text."""
    max_output_tokens: int
    """The output limit, in tokens for one choice; absent: the model's own."""
    choices: int
    """How many answers are generated, 1 to 128."""
    thinking_budget_tokens: int
    """Tokens set aside for thinking, inside the output limit."""
    candidates: Sequence[tuple[str, str]]
    """(provider, model) of each place where the call may go; absent: the model itself, at the price of whoever makes it."""
    endpoint: str
    """What was called, for the record, such as `/summaries`; at most 200 characters."""
    dialect: str
    stream: bool
    client_ip: str
    """The address of whoever holds the token; a token may be bound to some."""
    user_agent: str
    parent_request_id: str
    """The call that this one repeats."""
    input_unbounded: bool
    """Part of the input lies elsewhere: the model's context window is taken as its bound."""
    unbounded_features: Sequence[str]
    """What has no upper bound of cost: refused on a strict budget."""
    units: Sequence[str]
    """Units beyond text that the call can trigger, such as `output_audio`."""
    fixed_usage: Mapping[str, int]
    """Units of a known number that it triggers, such as `{"per_image": 3}`."""


class ModelTerms(CallTerms):
    """The same with the model, for what makes the terms of a call out of a request."""

    model: str


class UsageTerms(TypedDict, total=False):
    """How a call ended."""

    input_tokens: int
    output_tokens: int
    usage: Mapping[str, int]
    """Further counts by unit, such as `{"cached_input": 5}`; parts are inside their whole."""
    outcome: Outcome
    """`SETTLED` (default), `RELEASED`: nothing was served; `SETTLED_AT_HOLD`: nobody can know what was."""
    source: Source
    """`COUNTED` (default): exact, by the service itself; `PROVIDER`; `ESTIMATED`: charged up to the hold."""
    served: tuple[str, str]
    """(provider, model) of the candidate that served; absent: the first."""
    response_model: str
    status: int
    """The HTTP status of the work, 100 to 599."""
    error_code: str
    """What went wrong, at most 64 characters."""
    usage_json: str
    ttft_ms: int
    duration_ms: int
    token_id: int
    """For a call that was never admitted: whom to charge. Needs the right `record_unadmitted`."""


def text_ceiling(texts: str | Sequence[str]) -> int:
    """An upper bound of the tokens in these texts: bytes, raw or NFKC, whichever is more, and 16 a text."""
    listed = [texts] if isinstance(texts, str) else texts
    return sum(PER_TEXT + text_bytes(text) for text in listed)
