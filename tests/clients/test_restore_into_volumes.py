"""`gateway restore` in a container: the folders of certificates are there already, empty, as volumes are mounted on them."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.clients.conftest import Installation


def files(data: Path) -> dict[str, bytes]:
    kept = [path for name in ("pki", "keys") for path in (data / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(data)): path.read_bytes() for path in kept}


def test_a_backup_goes_into_folders_that_are_there_and_empty_and_into_no_others(fresh: Installation) -> None:
    fresh.gateway("init")
    before = files(fresh.data)
    backup = fresh.directory / "backup.tar"
    fresh.gateway("backup", "--out", str(backup))
    shutil.rmtree(fresh.data)
    for folder in ("pki/ca", "pki/auth", "pki/proxy", "keys"):
        (fresh.data / folder).mkdir(mode=0o700, parents=True)
    fresh.gateway("restore", str(backup))
    assert files(fresh.data) == before
    assert fresh.query("SELECT COUNT(*) AS n FROM client_tokens") == [{"n": 1}]
    again = fresh.gateway("restore", str(backup), check=False)
    assert again.returncode == 1
    assert "there is an installation already" in again.stderr
