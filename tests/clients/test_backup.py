"""`gateway backup` and `gateway restore`: what goes in comes out, only whole, and only where there is nothing."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from tests.clients.conftest import Installation


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[Installation, Path]:
    """An installation with one token and one internal service, and its backup."""
    folder = tmp_path_factory.mktemp("backed-up")
    stack = Installation(folder, "")
    stack.gateway("init", "--json")
    stack.gateway("identity", "create", "billing", "--json")
    stack.insert_token("a-token-of-the-backup", max_amount=5)
    told = stack.answer("backup", "--out", str(folder / "one.tar"))
    assert told["database"]["tokens"] == 2
    return stack, folder / "one.tar"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "elsewhere", "")


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for part in ("keys", "pki")
        for path in sorted((directory / part).rglob("*"))
        if path.is_file()
    }


def rewritten(source: Path, target: Path, **changed: bytes) -> Path:
    """The backup with other contents; `evil` adds a file of a name that no backup has."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for entry in old:
            content = old.extractfile(entry)
            assert content is not None
            data = changed.get(entry.name.replace(".", "_").replace("/", "_"), content.read())
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
        if "evil" in changed:
            entry = tarfile.TarInfo("../evil")
            entry.size = len(changed["evil"])
            new.addfile(entry, io.BytesIO(changed["evil"]))
    return target


def test_an_installation_comes_back_with_its_keys_and_its_books(backed_up, elsewhere):
    stack, file = backed_up
    done = elsewhere.gateway("restore", str(file))
    assert "2 tokens" in done.stdout
    assert tree(elsewhere.data) == tree(stack.data)
    assert elsewhere.query("SELECT * FROM client_tokens") == stack.query("SELECT * FROM client_tokens")
    assert elsewhere.gateway("migrate").stdout == "the database is up to date\n"
    assert elsewhere.gateway("reconcile").stdout == "0 differences\n"
    assert sorted(path.name for path in elsewhere.data.iterdir() if path.name.startswith(".gateway")) == []


def test_the_file_is_for_its_owner_alone_and_never_overwritten(backed_up):
    stack, file = backed_up
    assert file.stat().st_mode & 0o777 == 0o600
    refused = stack.gateway("backup", "--out", str(file), check=False)
    assert refused.returncode == 1
    assert "there already" in refused.stderr
    assert sorted(path.name for path in file.parent.iterdir() if path.name.startswith(".")) == []


def test_an_installation_that_is_there_is_never_touched(backed_up):
    stack, file = backed_up
    before = tree(stack.data), (stack.data / "gateway.db").stat().st_mtime_ns
    refused = stack.gateway("restore", str(file), check=False)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "GATEWAY_DATA_DIR" in refused.stderr
    assert (tree(stack.data), (stack.data / "gateway.db").stat().st_mtime_ns) == before


@pytest.mark.parametrize("part", ["keys/token.key", "pki/ca/ca.pem", "gateway.db-wal"])
def test_a_part_of_an_installation_is_one_too(backed_up, elsewhere, part: str):
    (elsewhere.data / part).parent.mkdir(parents=True)
    (elsewhere.data / part).touch()
    refused = elsewhere.gateway("restore", str(backed_up[1]), check=False)
    assert refused.returncode == 1
    assert "an installation already" in refused.stderr
    files = {path.relative_to(elsewhere.data).as_posix() for path in elsewhere.data.rglob("*") if path.is_file()}
    assert files == {part, "init.lock"}


@pytest.mark.parametrize("member", ["gateway_db", "keys_token_key"])
def test_a_changed_backup_is_told_from_a_whole_one(backed_up, elsewhere, tmp_path, member: str):
    file = rewritten(backed_up[1], tmp_path / "changed.tar", **{member: b"something else"})
    refused = elsewhere.gateway("restore", str(file), check=False)
    assert refused.returncode == 1
    assert "damaged" in refused.stderr
    assert not (elsewhere.data / "gateway.db").exists()
    assert not (elsewhere.data / "keys").exists()


def test_a_cut_off_backup_and_what_is_none_are_refused(backed_up, elsewhere, tmp_path):
    whole = backed_up[1].read_bytes()
    for content in (whole[: len(whole) // 2], b"no tar at all", b""):
        (tmp_path / "part.tar").write_bytes(content)
        refused = elsewhere.gateway("restore", str(tmp_path / "part.tar"), check=False)
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert "no backup, or a damaged one" in refused.stderr
        assert not (elsewhere.data / "gateway.db").exists()


def test_nothing_is_unpacked_outside_of_its_place(backed_up, elsewhere, tmp_path):
    file = rewritten(backed_up[1], tmp_path / "evil.tar", evil=b"x")
    refused = elsewhere.gateway("restore", str(file), check=False)
    assert refused.returncode == 1
    assert "../evil" in refused.stderr
    assert list(tmp_path.rglob("evil")) == []


def test_a_backup_with_another_key_than_its_tokens_have_is_not_made(tmp_path, backed_up):
    stack = Installation(tmp_path / "copy", "")
    shutil.copytree(backed_up[0].data, stack.data)
    (stack.data / "keys" / "token.key").write_text(f"{os.urandom(32).hex()}\n")
    refused = stack.gateway("backup", "--out", str(tmp_path / "two.tar"), check=False)
    assert refused.returncode == 1
    assert "not the key of this database" in refused.stderr
    assert not (tmp_path / "two.tar").exists()


def test_a_damaged_database_is_told_before_a_backup_is_made_of_it(tmp_path, backed_up):
    stack = Installation(tmp_path / "copy", "")
    shutil.copytree(backed_up[0].data, stack.data)
    with closing(sqlite3.connect(stack.database)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET rootpage = 3 WHERE name = 'client_tokens_name'")
        db.commit()
    refused = stack.gateway("backup", "--out", str(tmp_path / "two.tar"), check=False)
    assert refused.returncode == 1
    assert "damaged" in refused.stderr


def test_with_postgresql_the_keys_alone_are_taken_when_that_is_asked_for(tmp_path, backed_up, elsewhere):
    stack = Installation(tmp_path / "copy", "", {"GATEWAY_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"})
    shutil.copytree(backed_up[0].data, stack.data)
    refused = stack.gateway("backup", "--out", str(tmp_path / "two.tar"), check=False)
    assert refused.returncode == 2
    assert "pg_dump" in refused.stderr
    stack.gateway("backup", "--out", str(tmp_path / "two.tar"), "--without-database")
    elsewhere.gateway("restore", str(tmp_path / "two.tar"))
    assert tree(elsewhere.data) == tree(stack.data)
    assert not (elsewhere.data / "gateway.db").exists()
