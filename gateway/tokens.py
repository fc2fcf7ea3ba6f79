"""Client tokens: what a secret looks like, and what is kept of it.

A generated secret is `sk-gz-` + 40 random base62 characters (238 bits) + 6 characters of checksum, so that a typing error is
known without a database. Only an HMAC-SHA256 under the installation's token key is stored: the secrets are random, so a slow
hash would cost every call and protect nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import zlib

PREFIX = "sk-gz-"
MIN_LENGTH = 8
MAX_LENGTH = 256
STRONG_LENGTH = 32

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_CHARACTERS = 40
_CHECKSUM_CHARACTERS = 6
_PRINTABLE = frozenset(chr(code) for code in range(0x21, 0x7F))


def generate() -> str:
    """A new secret."""
    body = "".join(secrets.choice(_BASE62) for _ in range(_RANDOM_CHARACTERS))
    return PREFIX + body + _checksum(body)


def is_plausible(secret: str) -> bool:
    """Whether this can be a client token at all: its length, its characters and, for `sk-gz-`, its checksum."""
    if not MIN_LENGTH <= len(secret) <= MAX_LENGTH or not _PRINTABLE.issuperset(secret):
        return False
    return not secret.startswith(PREFIX) or _is_generated(secret)


def check_chosen(secret: str) -> None:
    """Raises ValueError, saying what it takes, unless an administrator may choose this secret."""
    if not _PRINTABLE.issuperset(secret):
        raise ValueError("a chosen token has printable ASCII characters only, and no spaces")
    if not MIN_LENGTH <= len(secret) <= MAX_LENGTH:
        raise ValueError(f"a chosen token has {MIN_LENGTH} to {MAX_LENGTH} characters")
    if secret.startswith(PREFIX) and not _is_generated(secret):
        raise ValueError(f"a token that begins with {PREFIX} is a generated one, and the checksum of this one is wrong")


def is_weak(secret: str) -> bool:
    """Whether this secret is so short that it may be guessed."""
    return len(secret) < STRONG_LENGTH


def display_hint(secret: str) -> str:
    """What lists show of a generated secret: `sk-gz-…` and its last 4 characters. Nothing of a chosen one."""
    return f"{PREFIX}…{secret[-4:]}" if _is_generated(secret) else ""


def hash_secret(key: bytes, secret: str) -> bytes:
    """What is stored of a secret: 32 bytes, the same for the same secret under the same key."""
    return hmac.digest(key, secret.encode("utf-8", "surrogatepass"), "sha256")


def key_fingerprint(key: bytes) -> str:
    """What the database keeps of the token key, to know another one: 16 hex digits."""
    return hashlib.sha256(b"gateway-zero token key\0" + key).hexdigest()[:16]


def _is_generated(secret: str) -> bool:
    body, checksum = secret[len(PREFIX) : -_CHECKSUM_CHARACTERS], secret[-_CHECKSUM_CHARACTERS:]
    return (
        secret.startswith(PREFIX)
        and len(body) == _RANDOM_CHARACTERS
        and all(character in _BASE62 for character in body)
        and checksum == _checksum(body)
    )


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode("ascii"))
    digits = ""
    for _ in range(_CHECKSUM_CHARACTERS):
        number, digit = divmod(number, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits
