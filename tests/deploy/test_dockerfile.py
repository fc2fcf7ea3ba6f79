"""The image: what goes into it, what it runs as, and that its build trusts hashes alone."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments, comments left out and continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(index for index, (word, _) in enumerate(found) if word == "FROM") :]


def test_the_base_image_is_an_argument_so_that_it_can_be_pinned_by_digest():
    assert instructions()[0] == ("ARG", "BASE_IMAGE=python:3.13-slim")
    stages = [rest for word, rest in instructions() if word == "FROM"]
    assert stages == ["${BASE_IMAGE} AS build", "${BASE_IMAGE}"]
    assert "@sha256:" in (ROOT / "docs" / "containers.md").read_text()


def test_it_runs_as_a_user_with_a_number_and_no_name():
    assert [rest for word, rest in last_stage() if word == "USER"] == ["10001:10001"]
    after = [word for word, _ in last_stage()]
    assert "RUN" not in after[after.index("USER") :]


def test_packages_come_by_the_hashes_of_the_lock_and_never_from_source():
    runs = [rest for word, rest in instructions() if word == "RUN" and "pip" in rest and " install " in rest]
    assert len(runs) == 2
    assert "--require-hashes --only-binary :all: -r requirements.lock" in runs[0]
    assert "--no-index --no-deps" in runs[1]


def test_every_package_in_the_lock_has_hashes():
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text().strip(), flags=re.IGNORECASE)
    without = [entry.splitlines()[0] for entry in entries if not entry.startswith("#") and "--hash=sha256:" not in entry]
    assert len(entries) > 20
    assert without == []


def test_what_is_installed_for_the_build_alone_is_taken_out_again():
    """Everything that `hatchling` brings; each of them is in the lock, and none of ours needs it."""
    (run,) = [rest for word, rest in instructions() if word == "RUN" and "uninstall" in rest]
    removed = set(run.partition("--quiet")[2].split())
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert {re.match("[a-z]+", name)[0] for name in groups["build"]} <= removed
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert removed <= locked


def test_only_the_package_gets_into_the_build():
    """No setting, key, database or git history of a checkout is sent to the engine."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {name for word, rest in instructions() if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]}
    assert (
        allowed == copied == {"LICENSE", "README.md", "clients", "gateway", "pyproject.toml", "requirements.lock", "services"}
    )


def test_no_secret_stays_in_the_image():
    for word, rest in instructions():
        if word in {"ARG", "ENV"}:
            assert not re.search("PASSWORD|SECRET|_KEY|TOKEN", rest), rest
    assert "--mount=type=secret,id=pip.conf" in next(
        rest for word, rest in instructions() if "requirements.lock" in rest and word == "RUN"
    )


def test_no_host_of_a_registry_and_no_path_of_a_machine_is_named():
    for path in (
        ROOT / "Dockerfile",
        ROOT / "docker-compose.yml",
        ROOT / "deploy" / "compose.postgres.yml",
        ROOT / ".env.example",
    ):
        hosts = set(re.findall(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:com|io|org|net|dev)\b", path.read_text()))
        assert hosts <= {"llm.example.com"}, path
