"""The installation's token key: a file of 32 random bytes in hex, and its fingerprint in the database.

Tokens are stored as HMACs under this key, so a service with another key would know none of them: it must not start.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from gateway.errors import FailedPrecondition
from gateway.storage.database import Database, faults
from gateway.storage.models import ClientToken, Meta
from gateway.tokens import key_fingerprint

KEY_BYTES = 32

_FINGERPRINT = "token_key_fingerprint"  # in `meta`


def load(db: Database, path: Path) -> bytes:
    """The key, checked against the database, for the services that hash with it.

    Raises FailedPrecondition, saying what to do, where there is none or it is another one than the tokens were made under.
    """
    key = _read(path)
    if key is None:
        raise FailedPrecondition(f"there is no token key at {path}: run `gateway init`, or restore the file from a backup")
    _require_same(_known(db), key, path)
    return key


def settle(db: Database, path: Path) -> tuple[bytes, bool]:
    """The key, and whether it was made just now; the database knows its fingerprint afterwards. For `gateway init`.

    Raises FailedPrecondition instead of making a key, or taking another one, where tokens exist.
    """
    key = _read(path)
    with faults():
        tokens_exist = ClientToken.select().where(ClientToken.token_hash.is_null(False)).exists(db)
    if key is None and tokens_exist:
        raise FailedPrecondition(
            f"there is no token key at {path}, and tokens exist that no other key opens: restore the file from a backup"
        )
    made = key is None
    if key is None:
        key = _make(path)
    known = _known(db)
    if tokens_exist:
        _require_same(known, key, path)
    if known != key_fingerprint(key):
        with db.write():
            Meta.insert(key=_FINGERPRINT, value=key_fingerprint(key)).on_conflict(
                conflict_target=[Meta.key], update={Meta.value: key_fingerprint(key)}
            ).execute(db)
    return key, made


def _known(db: Database) -> str | None:
    """The fingerprint in the database."""
    rows = db.query("SELECT value FROM meta WHERE key = ?", (_FINGERPRINT,))
    return str(rows[0][0]) if rows else None


def _require_same(known: str | None, key: bytes, path: Path) -> None:
    if known is not None and known != key_fingerprint(key):
        raise FailedPrecondition(
            f"{path} is another key than this database's tokens were made under: restore that file from a backup, "
            "or set GATEWAY_DATABASE_URL to the database that belongs to it"
        )


def _read(path: Path) -> bytes | None:
    """The key of a file; None: there is no such file. Raises FailedPrecondition where it holds something else."""
    try:
        key = bytes.fromhex(path.read_text("ascii"))
    except FileNotFoundError:
        return None
    except ValueError:
        key = b""
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from None
    if len(key) != KEY_BYTES:
        raise FailedPrecondition(f"{path} holds no token key (64 hex digits): restore it from a backup")
    return key


def _make(path: Path) -> bytes:
    """A new key, on disk when this returns, for its owner alone. A file that is there meanwhile is never replaced."""
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
