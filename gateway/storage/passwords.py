"""Hashes of passwords: argon2id, at most two at a time in a process, an unknown name as dear as a known one."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import Throttled

MEMORY_KIB = 19 * 1024
PASSES = 2
LANES = 1
AT_ONCE = 2
LONGEST_WAIT = 3.0  # seconds for a turn; a hash takes some 30 ms, so whoever waits longer stands behind a flood

_hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID)
_turns = threading.BoundedSemaphore(AT_ONCE)


def hash_password(password: str) -> str:
    """The hash to keep of a password, with its salt and parameters. Raises Throttled when too many wait for a turn."""
    with _turn():
        return _hasher.hash(password)


class PasswordCheck:
    """Compares passwords with their hashes, and takes as long where there is none."""

    def __init__(self) -> None:
        self._nobody = _nobodys_hash()

    def matches(self, password: str, stored: str | None) -> bool:
        """Whether the stored hash is that of the password; never for None. Raises Throttled when too many wait for a turn."""
        with _turn():
            try:
                _hasher.verify(self._nobody if stored is None else stored, password)
            except (VerificationError, InvalidHashError):
                return False
        return stored is not None


@cache
def _nobodys_hash() -> str:
    """A hash that no password has, made ahead so that the first unknown name is no dearer than the next."""
    return hash_password(secrets.token_urlsafe(16))


@contextmanager
def _turn() -> Iterator[None]:
    if not _turns.acquire(timeout=LONGEST_WAIT):
        raise Throttled("too many logins at once: try again in a moment", retry_after=1.0)
    try:
        yield
    finally:
        _turns.release()
