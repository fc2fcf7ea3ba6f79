"""The inspections of `gateway check`. Each takes the settings and gives findings; none changes anything."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509

from clients.cli.health import ask
from clients.cli.issued import issued_identities
from clients.cli.output import Failure
from clients.cli.ports import listeners, port_fault
from gateway.process.settings import Settings
from gateway.rpc.identity import OWN_NAMES, Identity, IdentityError, expires_at

OK = "ok"
WARNING = "warning"
FAULT = "fault"

SLOW_SYNC_MS = 10.0  # one admission waits for one sync, and a caller waits a second in all
EXPIRES_SOON_DAYS = 30
AUTHORITY_EXPIRES_SOON_DAYS = 180
_SYNCS = 30
_RENEW = "run `gateway init`; the services take the new one up by themselves"

# File systems that other machines write to. SQLite's WAL needs memory that all its readers share, so they lose data.
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb2",
        "smb3",
        "smbfs",
        "afs",
        "ceph",
        "ncpfs",
        "glusterfs",
        "lustre",
        "beegfs",
        "gpfs",
        "ocfs2",
        "gfs2",
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: str
    """`ok`, `warning` or `fault`."""
    subject: str
    message: str


def data_directory(settings: Settings) -> Iterator[Finding]:
    """Whether the data directory is there, ours, writable, and closed to others."""
    directory = settings.data_dir
    subject = str(directory)
    if not directory.is_dir():
        yield Finding(FAULT, subject, "there is no data directory: run `gateway init`")
        return
    if not os.access(directory, os.W_OK | os.X_OK):
        yield Finding(FAULT, subject, "the data directory is not writable: give it to the user that runs the gateway")
    open_to_others = [path for path in _secret_files(settings) if path.stat().st_mode & 0o077]
    for path in open_to_others:
        yield Finding(FAULT, str(path), f"others may read or enter it: chmod {'700' if path.is_dir() else '600'} {path}")
    if not open_to_others:
        yield Finding(OK, subject, "writable, and closed to others")


def file_system(settings: Settings) -> Iterator[Finding]:
    """Refuses network file systems for the database and the outbox."""
    file = sqlite_file(settings)
    database_directory = settings.data_dir if file is None else file.parent
    for directory in dict.fromkeys((settings.data_dir, database_directory, settings.outbox_dir)):
        kind = _file_system_of(directory)
        if kind is None:
            yield Finding(WARNING, "file system", f"that of {directory} cannot be told on this system: it must be a local disk")
        elif kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse."):
            yield Finding(FAULT, "file system", f"{directory} is on {kind}, where data gets lost: use a local disk")
        else:
            yield Finding(OK, "file system", f"{directory} is on {kind}, local")


def disk_speed(settings: Settings) -> Iterator[Finding]:
    """Measures what a commit waits for: a write of 4 KiB with fdatasync."""
    if not os.access(settings.data_dir, os.W_OK):
        return
    took = []
    sync = getattr(os, "fdatasync", os.fsync)
    with tempfile.TemporaryFile(dir=settings.data_dir) as file:
        for _ in range(_SYNCS):
            os.write(file.fileno(), b"\0" * 4096)
            started = time.perf_counter()
            sync(file.fileno())
            took.append((time.perf_counter() - started) * 1000)
    median, worst = statistics.median(took), max(took)
    level = WARNING if median > SLOW_SYNC_MS else OK
    advice = ": every admission waits for one; use a faster disk" if level == WARNING else ""
    yield Finding(level, "fsync", f"median {median:.2f} ms, worst {worst:.2f} ms of {_SYNCS}{advice}")


def certificates(settings: Settings) -> Iterator[Finding]:
    """Whether each identity of this host can be used, and for how long."""
    for name in OWN_NAMES:
        directory = settings.identity_dir_for(name)
        try:
            identity = Identity.load(directory)
        except IdentityError as fault:
            yield Finding(FAULT, f"certificate {name}", str(fault))
            continue
        days = (expires_at(identity) - datetime.now(UTC)).days
        if days < EXPIRES_SOON_DAYS:
            yield Finding(WARNING, f"certificate {name}", f"expires in {days} days: {_RENEW}")
        else:
            yield Finding(OK, f"certificate {name}", f"good for {days} days")
    authority = settings.data_dir / "pki" / "ca" / "ca.pem"
    if authority.is_file():  # the services' own hosts and containers have none
        days = (x509.load_pem_x509_certificate(authority.read_bytes()).not_valid_after_utc - datetime.now(UTC)).days
        if days < AUTHORITY_EXPIRES_SOON_DAYS:
            text = (
                f"expires in {days} days: stop the services, remove {authority.parent.parent}, run `gateway init`, start them"
            )
            yield Finding(WARNING, "certificate authority", text)


def internal_services(settings: Settings) -> Iterator[Finding]:
    """How long the identities that were issued to internal services are good."""
    for one in issued_identities(settings):
        days = (one.expires_at - datetime.now(UTC)).days
        if days < EXPIRES_SOON_DAYS:
            text = "has expired" if days < 0 else f"expires in {days} days"
            advice = f"`gateway identity create {one.name} --force --out FOLDER`, and copy its files over those of the service"
            yield Finding(WARNING, f"identity {one.name}", f"{text}: {advice}")
        else:
            yield Finding(OK, f"identity {one.name}", f"good for {days} days")


def providers(settings: Settings) -> Iterator[Finding]:
    """Warns of keys that stand in the configuration, and finds those that are missing."""
    for provider in settings.providers:
        subject = f"provider {provider.name}"
        for number, key in enumerate(provider.api_keys, 1):
            scheme, _, rest = key.partition(":")
            if scheme == "env":
                if not os.environ.get(rest):
                    yield Finding(FAULT, subject, f"api_keys names the variable {rest}, which is not set")
            elif scheme == "file":
                if not os.access(rest, os.R_OK):
                    yield Finding(FAULT, subject, f"api_keys names the file {rest}, which cannot be read")
            else:
                text = f"key {number} of api_keys stands in {settings.config} itself: use env:NAME or file:PATH"
                yield Finding(WARNING, subject, text)


def prices(settings: Settings) -> Iterator[Finding]:
    """Finds prices whose figures contradict each other."""
    for price in settings.prices:
        ceiling, window = price.max_output_tokens, price.context_window
        if ceiling is not None and window is not None and ceiling > window:
            yield Finding(WARNING, f"price {price.model}", f"max_output_tokens ({ceiling}) is above context_window ({window})")
        if set(price.rates) == {"output"} or set(price.rates) == {"input"}:
            text = f"it has no rate for {'input' if 'output' in price.rates else 'output'}: that side is free"
            yield Finding(WARNING, f"price {price.model}", text)


_SERVICES = {
    "GATEWAY_HTTP_PORT": "proxy",
    "GATEWAY_ADMIN_HTTP": "proxy",
    "GATEWAY_PROXY_METRICS_ADDRESS": "proxy",
    "GATEWAY_AUTH_LISTEN": "auth",
    "GATEWAY_AUTH_METRICS_ADDRESS": "auth",
    "GATEWAY_ADMIN_LISTEN": "admin",
    "GATEWAY_ADMIN_METRICS_ADDRESS": "admin",
    "GATEWAY_DEMO_LISTEN": "demo",
}
"""Which service listens at the address of each variable."""
_ASK_SECONDS = 1.0


def ports(settings: Settings) -> Iterator[Finding]:
    """Whether the ports are free. Taken ones are no fault: the services may be running, and are asked whether it is they."""
    for variable, listen in listeners(settings).items():
        try:
            fault = port_fault(listen)
        except Failure as failure:
            yield Finding(FAULT, variable, failure.message)
            continue
        if fault is None:
            yield Finding(OK, variable, f"{listen} is free")
        elif ask(settings, _SERVICES[variable], _ASK_SECONDS).answered:
            yield Finding(OK, variable, f"the gateway's own {_SERVICES[variable]} listens at {listen}")
        else:
            yield Finding(
                WARNING, variable, f"{listen}: {fault}, by something else. Stop it, or set {variable} to a free port."
            )


def sqlite_file(settings: Settings) -> Path | None:
    """The file of the SQLite database; None where the database is a server."""
    url = settings.database_url
    return Path(unquote(urlsplit(url).path[1:])) if url.startswith("sqlite:") else None


def _secret_files(settings: Settings) -> list[Path]:
    """What nobody else may read or enter: the data directory, and every key in it."""
    directory = settings.data_dir
    kept = [directory, *sorted((directory / "pki").glob("*/*.key")), *sorted((directory / "pki").glob("*/key.pem"))]
    files = [settings.token_key_file, *sorted(directory.glob("gateway.db*"))]
    return [*kept, *(path for path in files if path.exists())]


def _file_system_of(path: Path) -> str | None:
    """The kind of file system that a path is on, as Linux names it; None where that cannot be read."""
    if sys.platform != "linux":
        return None
    resolved = str(path.resolve())
    best, kind = "", None
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        mounted, _, rest = line.partition(" - ")
        point = mounted.split()[4].replace("\\040", " ")
        if (resolved == point or resolved.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, rest.split()[0]
    return kind
