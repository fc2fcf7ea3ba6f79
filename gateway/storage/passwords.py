"""Hashes of passwords: argon2id, one at a time in a process, an unknown name as dear as a known one."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import Throttled

MEMORY_KIB = 19 * 1024
PASSES = 2
LANES = 1
LONGEST_WAIT = 3.0  # seconds for a turn in the thread; a hash takes some 30 ms, so whoever waits longer stands behind a flood
NICENESS = 10
"""Of the thread that hashes: it would else take half of a core that it shares with calls."""

_Result = TypeVar("_Result")


def _give_way_to_calls() -> None:
    if sys.platform == "linux":  # elsewhere threads have no niceness of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


_hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID)
_thread = ThreadPoolExecutor(1, thread_name_prefix="password", initializer=_give_way_to_calls)


def hash_password(password: str) -> str:
    """The hash to keep of a password, with its salt and parameters. Raises Throttled when too many wait for a turn."""
    return _by_thread(partial(_hasher.hash, password))


class PasswordCheck:
    """Compares passwords with their hashes, and takes as long where there is none."""

    def __init__(self) -> None:
        self._nobody = _nobodys_hash()

    def matches(self, password: str, stored: str | None) -> bool:
        """Whether the stored hash is that of the password; never for None. Raises Throttled when too many wait for a turn."""
        try:
            _by_thread(partial(_hasher.verify, self._nobody if stored is None else stored, password))
        except (VerificationError, InvalidHashError):
            return False
        return stored is not None


@cache
def _nobodys_hash() -> str:
    """A hash that no password has, made ahead so that the first unknown name is no dearer than the next."""
    return hash_password(secrets.token_urlsafe(16))


def _by_thread(work: Callable[[], _Result]) -> _Result:
    """Does this work in a thread of its own. Raises Throttled when its turn does not come in time."""
    done = _thread.submit(work)
    try:
        return done.result(LONGEST_WAIT)
    except TimeoutError:
        if done.cancel():
            raise Throttled("too many logins at once: try again in a moment", retry_after=1.0) from None
        return done.result()
