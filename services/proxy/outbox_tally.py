"""A tally beside an outbox: where its last call was opened, so that an adopter knows whether the files name all calls.

A process that is killed loses nothing that it had written: the kernel keeps that until the machine stops. So an outbox of this
boot whose files reach as far as the tally says names every call that was sent; one that was cut, or of another boot, may not.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LAYOUT: Final = struct.Struct("<8s36s36sIQ")  # magic, boot, process, number of the file, its length in bytes
_MAGIC: Final = b"gz1tally"
_PLACE: Final = struct.Struct("<IQ")
_PLACE_AT: Final = _LAYOUT.size - _PLACE.size


@dataclass(frozen=True, slots=True)
class Told:
    """What a tally says: of which process, and how long which file was when it opened its last call."""

    proxy_id: str
    number: int
    size: int


class Tally:
    """The tally of this process. A note costs one small write, which outlives the process and waits for no disk.

    Raises OSError where it cannot be made: then the outbox counts as not whole.
    """

    def __init__(self, directory: Path, stem: str, proxy_id: str) -> None:
        self._path = path_of(directory, stem)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # on a full disk it is shorter than it should be, and tells nothing
            os.write(self._fd, _LAYOUT.pack(_MAGIC, boot_id().encode(), proxy_id.encode(), 0, 0))

    def note(self, number: int, size: int) -> None:
        """Notes that the file with this number has this length in bytes, and that no call was opened behind it."""
        try:
            os.pwrite(self._fd, _PLACE.pack(number, size), _PLACE_AT)
        except OSError:  # what it said before is too little now: without a tally the outbox counts as not whole
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def close(self, *, remove: bool) -> None:
        """Lets go of it. remove: the files that it tells of are gone as well."""
        os.close(self._fd)
        if remove:
            with contextlib.suppress(OSError):
                self._path.unlink()


def path_of(directory: Path, stem: str) -> Path:
    """Where the tally of an outbox is."""
    return directory / f"{stem}.tally"


def read(directory: Path, stem: str) -> Told | None:
    """What the tally of an outbox says; None: there is none, none of this boot, or none that can be read."""
    try:
        data = path_of(directory, stem).read_bytes()
    except OSError:
        return None
    if len(data) != _LAYOUT.size:
        return None
    magic, boot, proxy_id, number, size = _LAYOUT.unpack(data)
    if magic != _MAGIC or not boot_id() or boot != boot_id().encode():
        return None
    return Told(proxy_id.decode("ascii", "replace"), number, size)


@cache
def boot_id() -> str:
    """What names this boot of the machine; empty where nothing does."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
