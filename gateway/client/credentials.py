"""The identity of an internal service: the three files that `gateway identity create` wrote, and where they are."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.client.certificate import read_certificate
from gateway.errors import Unauthenticated

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
ADDRESS_VARIABLE: Final = "GATEWAY_AUTH_ADDRESS"
DIRECTORY_VARIABLE: Final = "GATEWAY_IDENTITY_DIR"
FILES: Final = ("cert.pem", "key.pem", "ca.pem")


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A certificate, its key and the authority that it trusts, each as PEM."""

    name: str
    """The identity in the certificate, such as `billing`."""
    cert: bytes
    key: bytes
    ca: bytes
    expires_at: datetime
    directory: str = ""
    """Where it was read from, and where the client looks for a renewed one; empty: nowhere."""

    @classmethod
    def load(cls, directory: Path | str) -> Credentials:
        """Reads `cert.pem`, `key.pem` and `ca.pem` of a directory.

        Raises Unauthenticated, saying which command makes them, when one is missing, unreadable or expired, or when they do
        not belong together.
        """
        folder = Path(directory)
        cert, key, ca = (_read(folder, name) for name in FILES)
        try:
            facts = read_certificate(cert)
            read_certificate(ca)
        except ValueError as fault:
            raise Unauthenticated(f"{folder} holds no readable certificate ({fault}). {_how(folder)}") from None
        if not facts.identity:
            raise Unauthenticated(f"{folder / 'cert.pem'} names no identity of a gateway. {_how(folder)}")
        if b"PRIVATE KEY" not in key:
            raise Unauthenticated(f"{folder / 'key.pem'} holds no private key. {_how(folder)}")
        if not _belong_together(folder):
            raise Unauthenticated(f"{folder / 'key.pem'} is not the key of {folder / 'cert.pem'}. {_how(folder)}")
        if facts.expires_at < datetime.now(UTC):
            raise Unauthenticated(
                f"{folder / 'cert.pem'} expired on {facts.expires_at:%Y-%m-%d}. Where the gateway runs,"
                f" `gateway identity create {facts.identity} --force` makes a new one"
            )
        return cls(facts.identity, cert, key, ca, facts.expires_at, str(folder))

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Credentials:
        """Reads the directory that `GATEWAY_IDENTITY_DIR` names. Raises Unauthenticated."""
        directory = (os.environ if environment is None else environment).get(DIRECTORY_VARIABLE)
        if not directory:
            raise Unauthenticated(
                f"{DIRECTORY_VARIABLE} is not set: it names the folder with this service's certificate."
                " Where the gateway runs, `gateway identity create NAME --out DIR` makes one"
            )
        return cls.load(directory)


def address_from_env(environment: Mapping[str, str] | None = None) -> str:
    """Where auth is: `GATEWAY_AUTH_ADDRESS`, else this machine."""
    return (os.environ if environment is None else environment).get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise Unauthenticated(f"{folder / name}: {error.strerror or error}. {_how(folder)}") from None


def _belong_together(folder: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(folder / "cert.pem", folder / "key.pem", password="")
    except OSError:  # SSLError is one
        return False
    return True


def _how(folder: Path) -> str:
    return f"Where the gateway runs, `gateway identity create NAME --out {folder}` makes an identity"
