"""Who speaks: an installation's certificate authority, a certificate a service, and the caller's name on a call.

A certificate names its holder in a URI (`gateway://identity/proxy`) and in a DNS name (`proxy.gateway.internal`); servers read
the first, clients insist on the second. What an internal service may do stands in its certificate as further URIs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.rpc.keys import IDENTITY_PREFIX, dns_name

RPC_PREFIX: Final = "gateway://rpc/"
RIGHT_PREFIX: Final = "gateway://right/"
RECORD_UNADMITTED: Final = "record_unadmitted"
SERVERS: Final = ("auth", "admin")
OWN_NAMES: Final = (*SERVERS, "proxy", "operator")
"""The names that the installation uses itself; no internal service may have one of them."""
LEAF_DAYS: Final = 825
AUTHORITY_DAYS: Final = 3650

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_CLOCK_SKEW = timedelta(minutes=5)  # machines whose clocks are a little behind still accept a new certificate


class IdentityError(Exception):
    """A certificate, a key or a name that cannot be used; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key and the authority that it trusts, each as PEM."""

    name: str
    cert: bytes
    key: bytes = field(repr=False)
    ca: bytes

    @classmethod
    def load(cls, directory: Path | str) -> Identity:
        """Reads `cert.pem`, `key.pem` and `ca.pem` of a directory.

        Raises IdentityError when one is missing, unreadable or expired, or when they do not belong together.
        """
        folder = Path(directory)
        cert, key, ca = (_read(folder / name) for name in ("cert.pem", "key.pem", "ca.pem"))
        try:
            certificate = x509.load_pem_x509_certificate(cert)
            private = serialization.load_pem_private_key(key, None)
            authority = x509.load_pem_x509_certificate(ca)
            names = [uri[len(IDENTITY_PREFIX) :] for uri in _uris(certificate) if uri.startswith(IDENTITY_PREFIX)]
        except (ValueError, TypeError) as error:
            raise IdentityError(f"{folder} holds no readable certificate and key: {error}") from None
        if private.public_key() != certificate.public_key():
            raise IdentityError(f"{folder / 'key.pem'} is not the key of {folder / 'cert.pem'}")
        if len(names) != 1:
            raise IdentityError(f"{folder / 'cert.pem'} names no identity of a gateway")
        if certificate.issuer != authority.subject:
            raise IdentityError(f"{folder / 'cert.pem'} was not issued by {folder / 'ca.pem'}")
        if certificate.not_valid_after_utc < datetime.now(UTC):
            raise IdentityError(f"{folder / 'cert.pem'} expired on {certificate.not_valid_after_utc:%Y-%m-%d}: issue a new one")
        return cls(names[0], cert, key, ca)


def expires_at(identity: Identity) -> datetime:
    """The end of an identity's certificate, in UTC."""
    return x509.load_pem_x509_certificate(identity.cert).not_valid_after_utc


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call: the name in the certificate, and what the certificate itself grants."""

    name: str
    rpcs: frozenset[str] = frozenset()
    rights: frozenset[str] = frozenset()


NOBODY: Final = Caller("")


def caller_of(context: grpc.ServicerContext) -> Caller:
    """The caller by the certificate that the handshake verified; the name is empty when there was none."""
    names = context.auth_context().get("x509_subject_alternative_name")
    return _caller(tuple(names)) if names else NOBODY


def issued_at_of(context: grpc.ServicerContext) -> datetime | None:
    """When the caller's certificate was issued, by the clock of the authority's machine; None: not known."""
    pems = context.auth_context().get("x509_pem_cert")
    return _issued_at(bytes(pems[0])) if pems else None


@lru_cache(maxsize=256)
def _issued_at(pem: bytes) -> datetime:
    return issued_at(x509.load_pem_x509_certificate(pem))


def issued_at(certificate: x509.Certificate) -> datetime:
    """When a certificate was issued, to the second."""
    return certificate.not_valid_before_utc + _CLOCK_SKEW


@lru_cache(maxsize=1024)
def _caller(names: tuple[bytes, ...]) -> Caller:
    texts = [name.decode("ascii", "replace") for name in names]
    identities = [text[len(IDENTITY_PREFIX) :] for text in texts if text.startswith(IDENTITY_PREFIX)]
    if len(identities) != 1:
        return NOBODY
    return Caller(
        identities[0],
        frozenset(text[len(RPC_PREFIX) :] for text in texts if text.startswith(RPC_PREFIX)),
        frozenset(text[len(RIGHT_PREFIX) :] for text in texts if text.startswith(RIGHT_PREFIX)),
    )


def is_name(text: str) -> bool:
    """Whether a text can be the name of an identity."""
    return _NAME.fullmatch(text) is not None


def create_authority(directory: Path | str, *, days: int = AUTHORITY_DAYS) -> bool:
    """Makes an installation's certificate authority: `ca.key` and `ca.pem`, readable by their owner alone.

    Returns False and changes nothing when there is one. Raises IdentityError when only half of one is there.
    """
    folder = Path(directory)
    present = [(folder / name).exists() for name in ("ca.key", "ca.pem")]
    if all(present):
        return False
    if any(present):
        raise IdentityError(f"{folder} holds half an authority: restore the missing one of ca.key and ca.pem from a backup")
    key = ec.generate_private_key(ec.SECP256R1())
    # The serial number in the name keeps two installations' authorities apart in messages and in `Identity.load`.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "Gateway Zero"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{x509.random_serial_number():x}"[:16]),
        ]
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _make_private(folder)
    _write(folder / "ca.key", _key_pem(key))
    _write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
    return True


def issue(
    authority_directory: Path | str,
    name: str,
    out_directory: Path | str,
    *,
    rpcs: Iterable[str] = (),
    rights: Iterable[str] = (),
    days: float = LEAF_DAYS,
) -> Identity:
    """Issues a certificate and writes `cert.pem`, `key.pem` and `ca.pem`, for their owner alone; replaces what is there.

    name: `auth`, `admin`, `proxy`, `operator`, or an internal service's: lower-case letters, digits and hyphens.
    rpcs, rights: what an internal service may call, such as `ValidateToken`, and its rights, such as `record_unadmitted`.
    days: how long it is good for, at most as long as its authority; 0 or less gives one that has expired.
    Raises IdentityError for a name or right that cannot stand in a certificate, or an authority that cannot be read.
    """
    rpcs, rights = tuple(rpcs), tuple(rights)
    if not is_name(name):
        raise IdentityError(f"{name!r} is no name for an identity: lower-case letters, digits and hyphens, a letter first")
    if (rpcs or rights) and name in OWN_NAMES:
        raise IdentityError(f"{name} is the gateway's own: its rights stand in the services' tables, not in its certificate")
    if wrong := [word for word in (*rpcs, *rights) if not _WORD.fullmatch(word)]:
        raise IdentityError(f"{wrong[0]!r} is no RPC and no right")
    folder = Path(authority_directory)
    ca_pem = _read(folder / "ca.pem")
    try:
        authority = x509.load_pem_x509_certificate(ca_pem)
        authority_key = serialization.load_pem_private_key(_read(folder / "ca.key"), None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"{folder} holds no readable authority: {error}") from None
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{folder / 'ca.key'} is not an EC key")
    key = ec.generate_private_key(ec.SECP256R1())
    end = min(datetime.now(UTC) + timedelta(days=days), authority.not_valid_after_utc)
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if name in SERVERS else [])]
    uris = [IDENTITY_PREFIX + name, *(RPC_PREFIX + rpc for rpc in rpcs), *(RIGHT_PREFIX + right for right in rights)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(datetime.now(UTC), end) - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(dns_name(name)), *(x509.UniformResourceIdentifier(uri) for uri in uris)]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    identity = Identity(name, certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key), ca_pem)
    out = Path(out_directory)
    _make_private(out)
    _write(out / "key.pem", identity.key)
    _write(out / "cert.pem", identity.cert)
    _write(out / "ca.pem", identity.ca)
    return identity


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror or error}; `gateway init` makes the identities") from None


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Writes a file that its owner alone may read; whoever reads meanwhile sees the old one or the new one, whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
