"""The outbox's files on disk: how a record looks, how it is appended, and who may touch a file.

A record is `length (u32) | CRC-32 (u32) | payload`, little endian; the checksum covers the length and the payload, and a
payload opens with four bytes that tell its kind. A file is named `<stem>.log`, its continuations `<stem>.1.log` and so on: one
process writes one stem, and holds a lock on each of its files for as long as it lives.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

_HEAD: Final = struct.Struct("<II")
_MAX_PAYLOAD: Final = 1 << 20  # far above any report (two JSON texts of 4 KiB): a larger length is a damaged one
_NAME: Final = re.compile(r"(?!refused-|\.)(?P<stem>.+?)(?:\.(?P<number>[0-9]{1,9}))?\.log")
_UNFINISHED: Final = ".new"
_ABANDONED: Final = 60.0  # seconds; making a file takes a millisecond


class Kind(Enum):
    """What a record says. The value is the first four bytes of its payload."""

    OPENED = b"gz1o"
    """A call may go upstream. Body: its request id."""
    PROGRESS = b"gz1p"
    """How far a stream is. Body: as `adoption.progress_body` packs it."""
    SETTLEMENT = b"gz1s"
    """How a call ended. Body: a serialized `RecordUsageRequest`."""
    ACKNOWLEDGED = b"gz1a"
    """Calls that are finished. Body: their request ids, a line each."""


_KINDS: Final = {kind.value: kind for kind in Kind}
_ANY_KIND: Final = re.compile(b"gz1[opsa]")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file.

    offset: where its body begins in the file, in bytes.
    """

    kind: Kind
    body: bytes
    offset: int


def encode(kind: Kind, body: bytes) -> bytes:
    """A record as it stands in a file."""
    payload = kind.value + body
    return _HEAD.pack(len(payload), _checksum(payload)) + payload


def scan(data: bytes) -> tuple[list[Record], list[tuple[int, int]]]:
    """The readable records of a file, and the stretches (from, to) that are damaged, both in order.

    What follows a damaged stretch is found again by its kind and believed by its checksum.
    """
    records: list[Record] = []
    damaged: list[tuple[int, int]] = []
    position = 0
    while position < len(data):
        record = _read_at(data, position)
        if record is None:
            after = next(_resume(data, position + 1), len(data))
            damaged.append((position, after))
            position = after
        else:
            records.append(record)
            position = record.offset + len(record.body)
    return records, damaged


def _read_at(data: bytes, position: int) -> Record | None:
    if position + _HEAD.size + 4 > len(data):
        return None
    length, checksum = _HEAD.unpack_from(data, position)
    start = position + _HEAD.size
    if not 4 <= length <= _MAX_PAYLOAD or start + length > len(data):
        return None
    payload = data[start : start + length]
    kind = _KINDS.get(payload[:4])
    if kind is None or _checksum(payload) != checksum:
        return None
    return Record(kind, payload[4:], start + 4)


def _resume(data: bytes, position: int) -> Iterator[int]:
    for match in _ANY_KIND.finditer(data, position + _HEAD.size):
        if _read_at(data, match.start() - _HEAD.size) is not None:
            yield match.start() - _HEAD.size


def _checksum(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(len(payload).to_bytes(4, "little")))


@dataclass(slots=True, eq=False)
class Segment:
    """One locked file of an outbox.

    size: its length in bytes.
    live: the calls that keep it: those whose first record is here and that nobody has acknowledged yet.
    unsynced: the calls whose settlement was appended since the last sync began.
    named: whether its name is on the disk as well.
    broken: it may end in half a record, or its data may not have reached the disk; nothing more is appended.
    """

    path: Path
    fd: int
    size: int = 0
    named: bool = False
    broken: bool = False
    live: set[str] = field(default_factory=set)
    unsynced: list[str] = field(default_factory=list)

    @classmethod
    def create(cls, directory: Path, name: str) -> Segment:
        """A new file, locked before anyone can see it under its name. Raises OSError, FileExistsError when it is there."""
        path = directory / name
        if path.exists():
            raise FileExistsError(f"{path} is there already")
        unfinished = directory / f".{name}{_UNFINISHED}"
        fd = os.open(unfinished, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.rename(path)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)

    @classmethod
    def take(cls, path: Path) -> Segment | None:
        """Locks a file that nobody uses; None: someone does, or it is gone. Raises OSError when it cannot be opened."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine, named = os.fstat(fd), os.stat(path)
            # Whoever had it before may have finished and removed it between our open and our lock.
            if (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino):
                return cls(path, fd, mine.st_size)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def append(self, data: bytes) -> None:
        """Appends by one system call. Raises OSError; the file then ends where it ended before, or is broken."""
        offset = self.size
        try:
            written = os.write(self.fd, data)
            if written < len(data):
                self._finish(data[written:])
        except OSError:
            self._cut_back(offset)
            raise
        self.size += len(data)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Part of the file. Raises OSError."""
        chunks: list[bytes] = []
        left = self.size - offset if length is None else length
        while left > 0 and (chunk := os.pread(self.fd, left, offset)):
            chunks.append(chunk)
            offset += len(chunk)
            left -= len(chunk)
        return b"".join(chunks)

    def sync(self) -> None:
        """Waits until everything is on the disk. Raises OSError."""
        os.fdatasync(self.fd)
        if not self.named:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self.named = True

    def is_linked(self) -> bool:
        """Whether the file still has a name: without one it is gone as soon as we close it."""
        return os.fstat(self.fd).st_nlink > 0

    def remove(self) -> None:
        """Takes the file away and unlocks it. Raises OSError when it stays; it is still locked then."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Unlocks the file and leaves it where it is."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _finish(self, rest: bytes) -> None:
        """Writes what a write left over: either there is room by now, or the system says what is wrong. Raises OSError."""
        if os.write(self.fd, rest) < len(rest):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _cut_back(self, size: int) -> None:
        try:
            os.ftruncate(self.fd, size)
        except OSError:
            self.broken = True


def segment_name(stem: str, number: int) -> str:
    """The name of a process's first file (0) and of its continuations."""
    return f"{stem}.{number}.log" if number else f"{stem}.log"


def stem_of(path: Path) -> str:
    """The stem of an outbox file's name."""
    match = _NAME.fullmatch(path.name)
    return match["stem"] if match else path.stem


def number_of(path: Path) -> int:
    """Which of its process's files this is: 0 for the first."""
    match = _NAME.fullmatch(path.name)
    return int(match["number"] or 0) if match else 0


def groups(directory: Path) -> dict[str, list[Path]]:
    """The files in a directory by their stem, each group from its first file on. Raises OSError."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in directory.iterdir():
        if match := _NAME.fullmatch(path.name):
            found.setdefault(match["stem"], []).append((int(match["number"] or 0), path))
    return {stem: [path for _, path in sorted(files)] for stem, files in sorted(found.items())}


def remove_unfinished(directory: Path) -> None:
    """Removes what a process left behind that died while it made a file. Raises OSError."""
    for path in directory.glob(f".*{_UNFINISHED}"):
        segment = Segment.take(path)
        if segment is None:
            continue
        try:
            if time.time() - os.fstat(segment.fd).st_mtime > _ABANDONED:  # a younger one someone may be about to lock
                segment.remove()
        finally:
            segment.close()


def append_text(path: Path, text: str) -> None:
    """Appends text to a file that only its owner may read, all of it or none. Raises OSError."""
    segment = Segment(path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        segment.size = os.fstat(segment.fd).st_size
        segment.append(text.encode())
    finally:
        segment.close()


def probe(directory: Path, nonce: str) -> None:
    """Writes 8 KiB, waits for the disk and removes them again. Raises OSError when the disk is not well."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f".probe-{nonce}{_UNFINISHED}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        block = bytes(8192)
        if os.write(fd, block) != len(block):
            raise OSError("the disk is full")
        os.fdatasync(fd)
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
