"""What the documentation tells people with internal services to paste, pasted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite.stack import REPOSITORY, free_port, wait_for

TOKEN = "my-internal-token"


@pytest.fixture(scope="module")
def running(installation):
    """The installation with auth and admin running, and one token."""
    installation.insert_token(TOKEN, max_amount=1.0)
    installation.start("auth")
    wait_for("auth", lambda: installation.listens(installation.auth_port))
    wait_for("admin", lambda: installation.listens(installation.admin_port))
    return installation


def blocks(path: str, heading: str, language: str) -> list[str]:
    """The code blocks of a language under a heading of a document."""
    text = (REPOSITORY / path).read_text()
    section = re.split(r"^#{1,2} ", text.partition(f"## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(running, tmp_path):
    """A folder that looks like the repository to what is pasted there."""
    for name, target in ((".venv", Path(sys.prefix)), ("protos", REPOSITORY / "protos"), ("data", running.data)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    return tmp_path


def paste(stack, folder: Path, text: str, **settings: str) -> str:
    """Runs lines in a shell there, with the ports of this installation; gives what they print. Any failure is one."""
    here = text.replace(":50051/", f":{stack.auth_port}/").replace(":50052/", f":{stack.admin_port}/")
    done = subprocess.run(
        ["bash", "-e", "-c", here],
        cwd=folder,
        env=stack.environment | {"TOKEN": TOKEN, "PYTHONPATH": str(REPOSITORY)} | settings,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_of_the_readme_work_as_they_stand(running, folder):
    (shell,) = blocks("README.md", "Internal services", "sh")
    (code,) = blocks("README.md", "Internal services", "python")
    assert len([line for line in code.splitlines() if line]) == 5
    (folder / "pasted.py").write_text(code + "print(call.request_id, call.receipt.delivered, call.receipt.cost_nanos)\n")
    request_id, delivered, cost = paste(running, folder, f"{shell}\n.venv/bin/python pasted.py").splitlines()[-1].split()
    assert delivered == "True"
    row = running.query("SELECT state, cost_nanos, output_tokens FROM requests WHERE request_id = ?", request_id)[0]
    assert (row["state"], row["cost_nanos"], row["output_tokens"]) == ("settled", int(cost), 5)
    assert int(cost) > 0


def test_the_example_service_meters_itself_as_its_readme_says(running, folder):
    (shell,) = blocks("examples/README.md", "`metered_service.py`", "sh")
    create, start, curl = shell.strip().splitlines()
    paste(running, folder, create)
    port = free_port()
    name, _, value = start.partition(" ")[0].partition("=")
    assert start == f"{name}={value} .venv/bin/python examples/metered_service.py &"
    environment = running.environment | {name: str(folder / value), "PORT": str(port)}
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(
            [sys.executable, "examples/metered_service.py"], cwd=REPOSITORY, env=environment, stdout=log, stderr=log
        )
    try:
        wait_for("the example", lambda: service.poll() is not None or running.listens(port))
        asked = curl.replace(":8085", f":{port}").replace("curl ", "curl -s -w '\\n%{http_code}\\n' ")
        body, status = paste(running, folder, asked).splitlines()
        answer = json.loads(body)
        assert (status, answer["usage"]["input"]) == ("200", 12)
        assert paste(running, folder, asked, TOKEN="nobody-has-this").splitlines()[-1] == "401"
    finally:
        service.terminate()
        service.wait(20)
    rows = running.query("SELECT state, input_tokens, cost_nanos FROM requests WHERE endpoint = '/summaries'")
    assert [(row["state"], row["input_tokens"]) for row in rows] == [("settled", 12)]
    assert rows[0]["cost_nanos"] == round(answer["cost"] * 1e9) > 0


def test_the_lines_for_buf_work_as_printed(running, folder):
    (shell,) = blocks("docs/grpc.md", "By hand", "sh")
    printed = paste(running, folder, shell)
    for expected in ('"grant": {', '"heldNanos"', '"state": "settled"', '"status": "active"', '"tokens": ['):
        assert expected in printed
    reflected = shell.replace("--schema protos ", "").replace("create by-hand --out", "create by-hand --force --out")
    assert '"state": "settled"' in paste(running, folder, reflected)
