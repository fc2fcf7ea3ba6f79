"""The file of a backup: a tar of plain files, the first of which lists the others with their checksums."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from clients.cli.output import Failure

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
_MAX_MANIFEST: Final = 1 << 20
# What a backup may hold; a name that is none of these is not unpacked.
_NAME: Final = re.compile(
    r"gateway\.db|keys/token\.key|pki/[a-z][a-z0-9-]{0,62}/(?:cert|key|ca)\.pem|pki/ca/ca\.(?:key|pem)"
    r"|pki/issued/[a-z][a-z0-9-]{0,62}\.pem"
)


def may_hold(name: str) -> bool:
    """Whether a backup may have a file of this name."""
    return _NAME.fullmatch(name) is not None


def write(path: Path, files: Mapping[str, Path], facts: Mapping[str, Any]) -> None:
    """Makes an archive that is there whole or not at all, for its owner alone.

    files: the name of each in the archive, one that `may_hold` allows, and where it is: nobody may change it meanwhile.
    facts: further members of the manifest.
    Raises Failure where there is such a file already, OSError when it cannot be written.
    """
    if path.exists():
        raise Failure(f"{path} is there already: no backup is ever overwritten")
    manifest = {"format": FORMAT, **facts, "files": {name: _described(file) for name, file in files.items()}}
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as raw:
            with tarfile.open(fileobj=raw, mode="w|") as archive:
                text = json.dumps(manifest, indent=2).encode()
                archive.addfile(_entry(MANIFEST, len(text)), io.BytesIO(text))
                for name, file in files.items():
                    with file.open("rb") as content:
                        archive.addfile(_entry(name, file.stat().st_size), content)
            raw.flush()
            os.fsync(raw.fileno())
        os.link(draft, path)  # fails where somebody else has just made one
    finally:
        draft.unlink()


def unpack(path: Path, directory: Path) -> dict[str, Any]:
    """Unpacks an archive into an empty directory and gives its manifest.

    Raises Failure for what is no backup of ours, or a damaged one.
    """
    try:
        with tarfile.open(path, mode="r:") as archive:
            manifest = _manifest(archive)
            expected = dict(manifest["files"])
            for entry in archive:
                if entry.name == MANIFEST:
                    continue
                if not entry.isreg() or entry.name not in expected or not may_hold(entry.name):
                    raise Failure(f"{path} holds {entry.name[:200]!r}, which no backup has")
                content = archive.extractfile(entry)
                assert content is not None
                _copy(content, directory / entry.name)
                if _described(directory / entry.name) != expected.pop(entry.name):
                    raise Failure(f"{path} is damaged: {entry.name} is not what was backed up")
    except (tarfile.TarError, KeyError, TypeError, ValueError, EOFError) as fault:
        raise Failure(f"{path} is no backup, or a damaged one: {fault}") from None
    if expected:
        raise Failure(f"{path} is damaged: it lacks {', '.join(sorted(expected))}")
    return manifest


def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > _MAX_MANIFEST:
        raise ValueError("it does not begin with a manifest")
    content = archive.extractfile(first)
    assert content is not None
    manifest = json.load(content)
    if manifest["format"] != FORMAT:
        raise ValueError(f"it has the format {manifest['format']}, and this release reads {FORMAT}")
    return dict(manifest)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _copy(content: Any, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while block := content.read(1 << 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
