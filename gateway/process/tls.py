"""The certificate of the HTTP ports: read from its two files, judged, and made into what handshakes use."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has no others."""
EXPIRES_SOON_DAYS: Final = 14


class CertificateFault(Exception):
    """A certificate or key that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, ready for handshakes."""

    context: ssl.SSLContext
    names: tuple[str, ...]
    """The DNS names and addresses that it is for."""
    not_before: datetime
    not_after: datetime

    def concern(self, now: datetime | None = None) -> str:
        """What a person should know of its dates; empty: nothing. now: in UTC; None: the clock."""
        now = now or datetime.now(UTC)
        if now > self.not_after:
            return f"it expired on {self.not_after:%Y-%m-%d %H:%M} UTC: callers will refuse it"
        if now < self.not_before:
            return f"it is not valid before {self.not_before:%Y-%m-%d %H:%M} UTC: callers will refuse it until then"
        if (self.not_after - now).days < EXPIRES_SOON_DAYS:
            return f"it expires on {self.not_after:%Y-%m-%d %H:%M} UTC"
        return ""


def load_certificate(cert: Path, key: Path) -> Certificate:
    """Reads a certificate with its chain, and its key. Raises CertificateFault. One that has expired is no fault."""
    for path in (cert, key):
        _require_readable(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except ssl.SSLError as error:
        raise CertificateFault(_why(error, cert, key)) from None
    except OSError as error:
        raise CertificateFault(f"{cert}, {key}: {error.strerror or error}") from None
    try:
        leaf = x509.load_pem_x509_certificates(cert.read_bytes())[0]
    except (OSError, ValueError, IndexError) as error:
        raise CertificateFault(f"{cert}: it holds no readable certificate: {error}") from None
    return Certificate(context, _names(leaf), leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def _require_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise CertificateFault(f"{path}: {error.strerror or error}") from None


def _no_passphrase() -> str:
    """Keeps OpenSSL from asking the terminal; the library takes the empty one for wrong."""
    return ""


def _why(error: ssl.SSLError, cert: Path, key: Path) -> str:
    if error.reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}:  # the last: RSA and ECDSA
        return f"{key} is not the key of {cert}"
    if error.reason in {"EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "EE_KEY_TOO_WEAK"}:
        return f"{cert}: its key or its signature is too weak ({error.reason})"
    try:
        pem = cert.read_bytes(), key.read_bytes()
    except OSError:
        pem = b"", b""
    if b"-----BEGIN CERTIFICATE-----" not in pem[0]:
        return f"{cert}: it holds no certificate in PEM"
    if b"ENCRYPTED" in pem[1]:
        return f"{key}: the key has a passphrase: give one without"
    if b"PRIVATE KEY-----" not in pem[1]:
        return f"{key}: it holds no private key in PEM"
    return f"{cert}, {key}: they cannot be read ({error.reason or error})"


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return (
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )
