"""What a client must know of its own certificate, read with the standard library: whose it is, and until when it is good.

Nothing here is trusted, as the server verifies the certificate: it serves messages that say what is wrong.
"""

from __future__ import annotations

import binascii
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from gateway.rpc.keys import IDENTITY_PREFIX

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_URI: Final = 0x86


@dataclass(frozen=True, slots=True)
class Facts:
    """What a certificate says of its holder."""

    identity: str
    """The name in the gateway; empty: it names none."""
    expires_at: datetime


def read_certificate(pem: bytes) -> Facts:
    """The facts of the first certificate in a PEM text. Raises ValueError when there is none that can be read."""
    try:
        der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii").strip())
        return Facts(_identity(der), _expires_at(der))
    except (IndexError, UnicodeDecodeError, binascii.Error) as error:
        raise ValueError("no certificate in PEM") from error


def _identity(der: bytes) -> str:
    prefix = IDENTITY_PREFIX.encode("ascii")
    at = der.find(prefix)
    if at < 2 or der[at - 2] != _URI:
        return ""
    return der[at : at + der[at - 1]][len(prefix) :].decode("ascii", "replace")


def _expires_at(der: bytes) -> datetime:
    """The end of the validity: certificate, its first part, and there the fifth field after an optional version."""
    _, certificate = _open(der, 0)
    _, at = _open(der, certificate)
    if der[at] == _VERSION:
        at = _after(der, at)
    for _ in range(3):  # serial number, algorithm, issuer
        at = _after(der, at)
    if der[at] != _SEQUENCE:
        raise ValueError("a certificate without a validity")
    _, begins = _open(der, at)
    ends = _after(der, begins)
    length, start = _open(der, ends)
    text = der[start : start + length].decode("ascii")
    form = "%y%m%d%H%M%SZ" if der[ends] == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text, form).replace(tzinfo=UTC)


def _open(der: bytes, at: int) -> tuple[int, int]:
    """Length and start of the content of the element at this place."""
    length = der[at + 1]
    if length < 0x80:
        return length, at + 2
    size = length & 0x7F
    return int.from_bytes(der[at + 2 : at + 2 + size]), at + 2 + size


def _after(der: bytes, at: int) -> int:
    length, start = _open(der, at)
    return start + length
