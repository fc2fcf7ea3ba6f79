"""One provider as the proxy sees it, and what its failures mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic import SecretStr
from yarl import URL

from gateway.errors import GatewayError, UpstreamCredentials, UpstreamError
from services.proxy.providers.keys import LIMITED_REST, REFUSED_REST, Key, KeyPool

FAILURES_TO_REST = 5
"""Failures in a row after which a provider comes last."""
PROVIDER_REST = 10.0
"""Seconds for which it does."""
MAX_ERROR = 64 * 1024
"""Bytes of an error's body that are read."""
_OURS = frozenset({401, 402, 403})  # our key, our account with the provider, our rights there: none of the caller's business
_RELAYED = frozenset({400, 404, 405, 409, 413, 415, 422, 429, 451})
_FIELDS = ("message", "type", "param", "code")


@dataclass(slots=True)
class Relayed:
    """A provider's own refusal, as it goes to the caller."""

    status: int
    error: dict[str, Any]
    """The error object: message, type, param, code."""
    retry_after: float | None = None
    """Seconds; None: the provider names none."""


class ProviderRefused(Exception):
    """A provider refused the request itself, in words that the caller gets."""

    def __init__(self, relayed: Relayed) -> None:
        super().__init__(relayed.status)
        self.relayed = relayed


@dataclass(slots=True)
class Failure:
    """What an answer with an error status means."""

    told: GatewayError | ProviderRefused
    """What the caller is told."""
    again: bool
    """Whether another attempt can make sense, elsewhere or with another key."""
    same_place: bool = False
    """Whether it can make sense at the same place with the same key, a moment later."""


class Provider:
    """A provider that speaks OpenAI's dialect.

    name: in the configuration. base_url: with `/v1` or whatever stands in its place. patterns: the models that it serves.
    secrets: its keys. limit_parameter: where it takes the output limit. clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        name: str,
        kind: str,
        base_url: str,
        patterns: Sequence[str],
        secrets: Sequence[SecretStr],
        limit_parameter: str,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.kind = kind
        self.patterns = tuple(patterns)
        self.limit_parameter = limit_parameter
        self.chat_url = URL(base_url.rstrip("/") + "/chat/completions", encoded=True)
        self.keys = KeyPool(secrets, clock=clock)
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0

    @property
    def rests(self) -> bool:
        """Whether it failed so often that others come first."""
        return self._failures >= FAILURES_TO_REST and self._clock() < self._rests_until

    def failed(self) -> None:
        """Notes a failure that was the provider's own."""
        self._failures += 1
        self._rests_until = self._clock() + PROVIDER_REST

    def answered(self) -> None:
        """Notes an answer."""
        self._failures = 0

    def headers(self, key: Key | None, *, stream: bool) -> dict[str, str]:
        """The headers that go out: these and no others."""
        headers = {
            "Accept": "text/event-stream" if stream else "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "gateway",
        }
        if key is not None:
            headers["Authorization"] = key.authorization
        return headers

    def classify(self, status: int, headers: Mapping[str, str], body: bytes, key: Key | None) -> Failure:
        """What an answer with a status other than 200 means: its status first, its error object for the words.

        body: as much of it as was read. Lets a refused or limited key rest.
        """
        if status in _OURS:
            self.keys.rest(key, REFUSED_REST)
            told = UpstreamCredentials(f"The provider {self.name} refused the gateway's key. Its operator has to look at it.")
            return Failure(told, again=self.keys.has_fresh())
        retry_after = _retry_after(headers)
        if status == 429:
            self.keys.rest(key, LIMITED_REST if retry_after is None else retry_after)
            return Failure(ProviderRefused(self._relayed(status, body, retry_after)), again=True)
        if status in _RELAYED:
            return Failure(ProviderRefused(self._relayed(status, body, None)), again=False)
        text = f"The provider {self.name} answered with status {status}."
        if status >= 500:
            self.failed()
            return Failure(UpstreamError(text, retry_after=retry_after), again=True, same_place=True)
        return Failure(UpstreamError(text), again=False)

    def _relayed(self, status: int, body: bytes, retry_after: float | None) -> Relayed:
        error = _error_object(body)
        told: dict[str, Any] = {}
        for name in _FIELDS:
            value = error.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            told[name] = self.keys.redactor.redact_text(value[:4000]) if isinstance(value, str) else None
        told["message"] = told["message"] or f"The provider {self.name} refused the request with status {status}."
        told["type"] = told["type"] or "invalid_request_error"
        return Relayed(status, told, retry_after)


def _error_object(body: bytes) -> Mapping[str, Any]:
    """The error object in a body, in the shapes that are in use; empty where there is none."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return {}
    error = value.get("error", value)
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `Retry-After`, 0 to an hour; None where there are none or they are no number."""
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(max(seconds, 0.0), 3600.0) if math.isfinite(seconds) else None


@dataclass(slots=True)
class Target:
    """One place where a call may go."""

    provider: Provider
    model: str
    """The model's name there."""


@dataclass(slots=True)
class Alias:
    """A name of the gateway's own."""

    name: str
    targets: list[tuple[Target, int]] = field(default_factory=list)
    """In order, each with its weight."""
