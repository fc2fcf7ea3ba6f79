"""The gateway's own keys at a provider: where they come from, whose turn it is, which ones rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from services.proxy.providers.redaction import Redactor

REFUSED_REST = 60.0
"""Seconds that a key rests which its provider refused."""
LIMITED_REST = 5.0
"""Seconds that a key rests which is over its limit, unless the provider names another time."""
LONGEST_REST = 60.0


class KeyMissing(Exception):
    """A key that the settings name is not there; the message says which and where it was looked for."""


def resolve_keys(name: str, api_keys: Sequence[str], environ: Mapping[str, str]) -> tuple[SecretStr, ...]:
    """The keys themselves, from `env:NAME`, `file:PATH` or as they stand. Raises KeyMissing.

    name: the provider's, for the message.
    """
    return tuple(SecretStr(_resolve(name, reference, environ)) for reference in api_keys)


def _resolve(name: str, reference: str, environ: Mapping[str, str]) -> str:
    kind, _, rest = reference.partition(":")
    if kind == "env":
        key, place = environ.get(rest, ""), f"the environment variable {rest}"
    elif kind == "file":
        try:
            key, place = Path(rest).read_text(encoding="utf-8"), f"the file {rest}"
        except (OSError, UnicodeDecodeError):
            raise KeyMissing(f"provider {name}: the file {rest} with its key cannot be read") from None
    else:
        key, place = reference, "the settings"
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise KeyMissing(f"provider {name}: {place} holds no key")
    return key


class Key:
    """One key, and until when it rests."""

    __slots__ = ("authorization", "rests_until")

    def __init__(self, secret: str) -> None:
        self.authorization = f"Bearer {secret}"
        self.rests_until = 0.0


class KeyPool:
    """The keys of one provider, taken in turn.

    secrets: none at all for a provider that asks for none. clock: monotonic seconds.
    """

    def __init__(self, secrets: Sequence[SecretStr], *, clock: Callable[[], float]) -> None:
        self._keys = [Key(secret.get_secret_value()) for secret in secrets]
        self._clock = clock
        self._next = 0
        self.redactor = Redactor([secret.get_secret_value() for secret in secrets])

    def take(self) -> Key | None:
        """The key whose turn it is, of those that do not rest; if all do, the one that is done first. None: none needed."""
        keys = self._keys
        if len(keys) <= 1:
            return keys[0] if keys else None
        now = self._clock()
        for offset in range(len(keys)):
            key = keys[(self._next + offset) % len(keys)]
            if key.rests_until <= now:
                self._next = (self._next + offset + 1) % len(keys)
                return key
        return min(keys, key=lambda key: key.rests_until)

    def rest(self, key: Key | None, seconds: float) -> None:
        """Lets a key rest for so many seconds, at most a minute."""
        if key is not None:
            key.rests_until = self._clock() + min(seconds, LONGEST_REST)

    def has_fresh(self) -> bool:
        """Whether there is a key that does not rest."""
        now = self._clock()
        return any(key.rests_until <= now for key in self._keys)
