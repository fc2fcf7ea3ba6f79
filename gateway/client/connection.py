"""The connection to auth that is in use, and how it is made anew when the identity on disk is renewed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from gateway.client.credentials import FILES, Credentials
from gateway.client.faults import Faults
from gateway.errors import Unauthenticated
from gateway.file_signature import Signature, signature

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the folder of the identity, however many calls there are."""

_log: Final = logging.getLogger("gateway.client")
_S = TypeVar("_S")
_E = TypeVar("_E")


@dataclass(eq=False, slots=True)
class Line(Generic[_S, _E]):
    """One channel to auth: its stub, what closes it, and what reads its faults."""

    stub: _S
    close: Callable[[], _E]
    faults: Faults
    running: int = 0
    """RPCs that are on it."""


class Connection(Generic[_S, _E]):
    """Gives the line on which to make the next RPC. Safe to use from many threads.

    dial: makes a line with an identity. credentials: the first one. Where it was read from a folder, a renewed certificate
    there takes over within a second: RPCs that have begun end on the line on which they began. clock: monotonic seconds.
    """

    def __init__(
        self,
        dial: Callable[[Credentials], Line[_S, _E]],
        credentials: Credentials,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dial = dial
        self._credentials = credentials
        self._clock = clock
        self._lock = threading.Lock()
        self._files = _files(credentials)
        self._seen: Signature = ()  # so the first look reads the files: they may have changed since `credentials` were read
        self._next_look = clock() + LOOK_EVERY
        self._line = dial(credentials)
        self._replaced: set[Line[_S, _E]] = set()

    def take(self) -> Line[_S, _E]:
        """The line for one RPC; to be given back."""
        with self._lock:
            if self._files and self._clock() >= self._next_look:
                self._look()
            self._line.running += 1
            return self._line

    def give_back(self, line: Line[_S, _E]) -> Iterable[Line[_S, _E]]:
        """Ends one RPC's use of a line. Gives the lines that nobody uses any more, to be closed."""
        with self._lock:
            line.running -= 1
            if not self._replaced:
                return ()
            over = {old for old in self._replaced if not old.running}
            self._replaced -= over
            return over

    def lines(self) -> Iterable[Line[_S, _E]]:
        """Every line that is open, to be closed at the end."""
        with self._lock:
            return (self._line, *self._replaced)

    def _look(self) -> None:
        """Takes a renewed identity over. A folder that holds no good one is named once, until its files change again."""
        self._next_look = self._clock() + LOOK_EVERY
        found = signature(*self._files)
        if found == self._seen:
            return
        self._seen = found
        folder = self._credentials.directory
        try:
            renewed = _load(folder, self._credentials.name)
        except Unauthenticated as fault:  # also what is seen between two of the files being replaced
            _log.warning("identity_not_renewed: %s: the one in use stays: %s", folder, fault.message)
            return
        if signature(*self._files) != found:  # they are being replaced: the next look reads them
            self._seen = ()
            return
        if renewed == self._credentials:
            return
        self._replaced.add(self._line)
        self._line, self._credentials = self._dial(renewed), renewed
        _log.info("identity_renewed: %s: its certificate expires at %s", folder, renewed.expires_at.isoformat())


def _files(credentials: Credentials) -> tuple[Path, ...]:
    if not credentials.directory:
        return ()
    return tuple(Path(credentials.directory) / name for name in FILES)


def _load(folder: str, name: str) -> Credentials:
    renewed = Credentials.load(folder)
    if renewed.name != name:
        raise Unauthenticated(f"the folder now holds the identity {renewed.name} instead of {name}")
    return renewed
