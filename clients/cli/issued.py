"""Which identities were issued to internal services: a copy of each certificate, without its key, in `<data>/pki/issued`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.process.settings import Settings
from gateway.rpc.identity import RIGHT_PREFIX, RPC_PREFIX, issued_at
from gateway.rpc.keys import IDENTITY_PREFIX


@dataclass(frozen=True, slots=True)
class Issued:
    """What a certificate says."""

    name: str
    issued_at: datetime
    """To the second."""
    expires_at: datetime
    methods: tuple[str, ...]
    rights: tuple[str, ...]
    serial: int
    pem: bytes

    @classmethod
    def read(cls, path: Path) -> Issued:
        """Reads one certificate. Raises OSError, or ValueError when it is none of an identity."""
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        (name,) = _after(IDENTITY_PREFIX, uris)
        return cls(
            name=name,
            issued_at=issued_at(certificate),
            expires_at=certificate.not_valid_after_utc,
            methods=_after(RPC_PREFIX, uris),
            rights=_after(RIGHT_PREFIX, uris),
            serial=certificate.serial_number,
            pem=certificate.public_bytes(Encoding.PEM),
        )


def remember(settings: Settings, name: str, pem: bytes) -> None:
    """Keeps the certificate that was issued last to a service, in place of the one before."""
    folder = _folder(settings)
    folder.mkdir(mode=0o700, exist_ok=True)
    draft = folder / f".{name}.{os.getpid()}"
    draft.write_bytes(pem)
    draft.replace(folder / f"{name}.pem")


def issued_identities(settings: Settings) -> list[Issued]:
    """What was issued, by name. A file that is no certificate is left out."""
    found = []
    for path in sorted(_folder(settings).glob("*.pem")):
        try:
            found.append(Issued.read(path))
        except (ValueError, x509.ExtensionNotFound):
            continue
    return found


def _folder(settings: Settings) -> Path:
    return settings.data_dir / "pki" / "issued"


def _after(prefix: str, uris: list[str]) -> tuple[str, ...]:
    return tuple(uri[len(prefix) :] for uri in uris if uri.startswith(prefix))
