"""`gateway backup` and `gateway restore`: database, token key and certificates in one file, and back into an empty place."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clients.cli import archive, keys
from clients.cli.inspection import sqlite_file
from clients.cli.output import USAGE, Failure, Json, tell, tell_json, warn
from gateway.money import to_units
from gateway.process import token_key
from gateway.process.settings import Settings, load_settings
from gateway.storage.copies import Copy, copy_online, examine
from gateway.tokens import key_fingerprint

_DATABASE = "gateway.db"
_TOKEN_KEY = "keys/token.key"  # noqa: S105 - a name in the archive
_PKI = "pki"
_POSTGRES = "the database is a PostgreSQL one, which pg_dump backs up: take the keys with --without-database, then the database"


def backup(
    *,
    out: Annotated[Path, Parameter(help="The file to make; there must be none of this name yet.")],
    without_database: Annotated[bool, Parameter(help="Keys and certificates alone; for PostgreSQL, beside pg_dump.")] = False,
    json: Json = False,
) -> None:
    """Put database, token key and certificates into one file, while the services go on."""
    settings = load_settings(os.environ)
    os.umask(0o077)
    source = sqlite_file(settings)
    if source is None and not without_database:
        raise Failure(_POSTGRES, code=USAGE, reason="postgresql")
    with _working_directory(out.absolute().parent) as folder:
        files = _copied(_secrets(settings), folder)
        facts: dict[str, Any] = {"created_at": datetime.now(UTC).isoformat(), "release": version("gateway-zero")}
        if source is not None and not without_database:
            copy_online(source, folder / _DATABASE)
            found = examine(folder / _DATABASE)
            _require_key(settings.token_key_file, found.token_key_fingerprint)
            _warn_of(found)
            files[_DATABASE] = folder / _DATABASE
            facts["database"] = asdict(found)
        archive.write(out.absolute(), files, facts)
    if json:
        tell_json({"file": str(out), "size": out.stat().st_size, **facts, "files": sorted(files)})
    else:
        tell(f"{out}: {', '.join(_told(files, facts))}")


def restore(
    file: Annotated[Path, Parameter(help="What `gateway backup` made.")],
    *,
    json: Json = False,
) -> None:
    """Make an installation from a backup. Never touches one that is there: its place must be empty."""
    settings = load_settings(os.environ)
    with keys.data_directory(settings) as data, _working_directory(data) as folder:
        manifest = archive.unpack(file, folder)
        names = sorted(manifest["files"])
        places = _places(settings, names)
        _require_empty(places.values())
        if _DATABASE in names:
            found = examine(folder / _DATABASE)
            _require_key(folder / _TOKEN_KEY, found.token_key_fingerprint)
            _warn_of(found)
        # The database last: without it nothing starts, so half of a restore is never taken for a whole one.
        for name in sorted(places, key=lambda name: name == _DATABASE):
            _move(folder / name, places[name])
    if json:
        tell_json({"restored": names, "created_at": manifest["created_at"], "release": manifest["release"]})
    else:
        tell(f"restored from {manifest['created_at']}: {', '.join(_told(dict.fromkeys(names, file), manifest))}")
        tell("what was called after that moment is not in these books; now run `gateway migrate` and `gateway check`")


@contextmanager
def _working_directory(parent: Path) -> Iterator[Path]:
    """A directory for drafts beside the place where they go, removed in the end."""
    with tempfile.TemporaryDirectory(prefix=".gateway-", dir=parent) as name:
        yield Path(name)


def _secrets(settings: Settings) -> Iterator[tuple[str, Path]]:
    """The token key and the certificates, by their names in the archive."""
    token_key.read(settings.token_key_file)
    yield _TOKEN_KEY, settings.token_key_file
    root = settings.data_dir / _PKI
    for path in sorted(root.glob("*/*")):
        name = f"{_PKI}/{path.relative_to(root).as_posix()}"
        if path.is_file() and archive.may_hold(name):
            yield name, path


def _copied(files: Iterator[tuple[str, Path]], folder: Path) -> dict[str, Path]:
    """Copies of files, as a certificate may be renewed before all that comes with it is written."""
    copies = {}
    for name, path in files:
        copies[name] = folder / name
        copies[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copies[name])
    return copies


def _require_key(path: Path, fingerprint: str) -> None:
    """Raises Failure unless the token key is the one that the tokens of the database are stored under."""
    if fingerprint and key_fingerprint(token_key.read(path)) != fingerprint:
        raise Failure(f"{path.name} is not the key of this database: with it every token would be unknown")


def _warn_of(found: Copy) -> None:
    if found.differences:
        warn(f"{found.differences} figures of the books in it do not add up: see `gateway reconcile`")


def _places(settings: Settings, names: list[str]) -> dict[str, Path]:
    """Where each part of a backup goes; the certificates are one part."""
    places: dict[str, Path] = {}
    if any(name.startswith(f"{_PKI}/") for name in names):
        places[_PKI] = settings.data_dir / _PKI
    if _TOKEN_KEY in names:
        places[_TOKEN_KEY] = settings.token_key_file
    if _DATABASE in names:
        target = sqlite_file(settings)
        if target is None:
            raise Failure("the backup holds a SQLite database, and GATEWAY_DATABASE_URL names a PostgreSQL one", code=USAGE)
        places[_DATABASE] = target
    return places


def _require_empty(places: Any) -> None:
    found = [str(place) for place in places if _is_taken(place)]
    if found:
        raise Failure(
            f"there is an installation already ({', '.join(found)}): restore into another GATEWAY_DATA_DIR, or move it away"
        )


def _is_taken(place: Path) -> bool:
    """Whether something is there; folders alone are nothing, as containers have empty ones where volumes are mounted."""
    if place.is_dir():
        return any(not path.is_dir() for path in place.rglob("*"))
    return place.exists() or Path(f"{place}-wal").exists()


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if target.is_dir():  # maybe a volume, onto which nothing can be moved: into it, then
        for child in sorted(source.iterdir()):
            _move(child, target / child.name)
        return
    try:
        source.rename(target)
    except OSError as fault:
        if fault.errno != errno.EXDEV:
            raise
        # A volume of its own, as containers have one for each secret; the numbers of their devices may be the same.
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copytree(source, draft) if source.is_dir() else shutil.copy2(source, draft)
        draft.rename(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _told(files: Any, facts: Any) -> Iterator[str]:
    found = facts.get("database")
    if found:
        yield f"{found['tokens']} tokens, {found['requests']} requests, {to_units(found['spent_nanos']):f} spent"
    yield f"{sum(name.startswith(_PKI) for name in files)} files of certificates"
    if _TOKEN_KEY in files:
        yield "the token key"
