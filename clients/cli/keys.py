"""The files that `gateway init` makes: the data directory, the authority and a certificate for each service."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from clients.cli.output import Failure
from gateway.process.settings import Settings
from gateway.rpc.identity import OWN_NAMES, Identity, IdentityError, create_authority, issue

RENEW_BEFORE = timedelta(days=60)  # a certificate that ends sooner is replaced


@contextmanager
def data_directory(settings: Settings) -> Iterator[Path]:
    """The data directory, made if it is missing, for its owner alone; one `gateway init` at a time has it."""
    os.umask(0o077)
    directory = settings.data_dir
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid == os.geteuid():
        directory.chmod(0o700)
    descriptor = os.open(directory / "init.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(descriptor)


def make_certificates(settings: Settings) -> list[str]:
    """The authority and the certificates that are missing, cannot be read or end soon. Gives the names of what was made."""
    pki = settings.data_dir / "pki"
    authority = pki / "ca"
    made = []
    try:
        if not (authority / "ca.pem").exists():
            _make_authority(authority)
            made.append("ca")
        for name in OWN_NAMES:
            directory = pki / name
            if not _is_good(directory, authority / "ca.pem"):
                issue(authority, name, directory)
                made.append(name)
    except IdentityError as fault:
        raise Failure(str(fault), reason="certificates") from None
    return made


def _make_authority(directory: Path) -> None:
    """A new authority that is there whole or not at all: certificates of half a one could never be told from real ones.

    It is made beside and moved in file by file, as the directory may be a volume, onto which nothing can be moved. Whoever is
    killed between the two leaves the certificate in the draft, and the next one moves it.
    """
    draft = directory / ".draft"
    if (directory / "ca.key").exists():
        if not (draft / "ca.pem").exists():
            raise IdentityError(f"{directory} holds half an authority: restore ca.pem from a backup")
    else:
        shutil.rmtree(draft, ignore_errors=True)
        create_authority(draft)
        (draft / "ca.key").rename(directory / "ca.key")
    (draft / "ca.pem").rename(directory / "ca.pem")
    draft.rmdir()
    _sync_directory(directory)


def _is_good(directory: Path, authority: Path) -> bool:
    """Whether a certificate can be used for a while yet."""
    try:
        identity = Identity.load(directory)
    except IdentityError:
        return False
    ends = x509.load_pem_x509_certificate(identity.cert).not_valid_after_utc
    return identity.ca == authority.read_bytes() and ends - datetime.now(UTC) > RENEW_BEFORE


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
