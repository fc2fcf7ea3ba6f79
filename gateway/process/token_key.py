"""The installation's token key: a file of 32 random bytes in hex. Client tokens are stored as HMACs under it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from gateway.errors import FailedPrecondition

KEY_BYTES = 32


def read(path: Path) -> bytes:
    """The key. Raises FailedPrecondition, saying what to do, where there is no file or it holds something else."""
    try:
        key = bytes.fromhex(path.read_text("ascii"))
    except FileNotFoundError:
        raise FailedPrecondition(f"there is no token key at {path}: run `gateway init`, or restore it from a backup") from None
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise FailedPrecondition(f"{path} holds no token key ({KEY_BYTES * 2} hex digits): restore it from a backup")
    return key


def make(path: Path) -> bytes:
    """A new key, on disk when this returns, for its owner alone. Raises FileExistsError: no file is ever replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = secrets.token_bytes(KEY_BYTES)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{key.hex()}\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # fails where there is a file, which a rename would replace
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return key
