"""Certificates for tests: one authority a process, each name issued once, as making keys takes time."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import threading
from pathlib import Path

from gateway.rpc.identity import Identity, create_authority, issue

_lock = threading.Lock()


def make_identities(directory: Path, *names: str) -> dict[str, Identity]:
    """The identities of these names, each also written to `<directory>/<name>/{cert,key,ca}.pem`.

    All of them, over all calls in this process, come from one authority, whose files `authority()` tells.
    """
    root = authority()
    identities = {}
    for name in names:
        with _lock:
            identity = Identity.load(root / name) if (root / name).exists() else issue(root / "ca", name, root / name)
        if directory / name != root / name:
            shutil.copytree(root / name, directory / name, dirs_exist_ok=True)
        identities[name] = identity
    return identities


@functools.cache
def authority() -> Path:
    """The folder whose `ca` holds the authority's own files, for certificates of other kinds."""
    root = Path(tempfile.mkdtemp(prefix="gateway-pki-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    create_authority(root / "ca")
    return root
