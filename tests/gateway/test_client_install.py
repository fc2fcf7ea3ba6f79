"""The client after `pip install gateway-zero`: the built wheel beside grpcio and protobuf, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from importlib.metadata import files, requires
from pathlib import Path

import pytest

from tests.gateway.client_harness import real_auth
from tests.support.ledger import MODEL, SECRET

REPOSITORY = Path(__file__).resolve().parents[2]

CALL = """
import json, logging, sys
from gateway.client import AsyncGateway, Gateway
import gateway.client.grpc_guard, gateway.client.testing
with Gateway(sys.argv[1], identity=sys.argv[2], timeout=10.0) as gateway:
    with gateway.call(sys.argv[3], model=sys.argv[4], input_text="Hello", max_output_tokens=5) as call:
        call.usage(input_tokens=2, output_tokens=3)
foreign = {name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(json.dumps({"cost": call.receipt.cost_nanos, "loaded": sorted(foreign - set(sys.stdlib_module_names))}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=100)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel, and what grpcio and protobuf install, by their own requirements; the only one on the path."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    waiting = ["grpcio", "protobuf"]
    for name in waiting:
        waiting += [text.split(">")[0].split("~")[0].strip() for text in requires(name) or [] if "extra" not in text]
        for file in files(name) or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file.locate())
    return folder


def isolated(site: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code with the standard library and this folder, and no other package of this machine."""
    start = f"import sys; sys.path.append({str(site)!r})\n{code}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start, *arguments], cwd=site, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_wheel_alone_makes_a_call_to_a_real_auth(site, tmp_path):
    with real_auth(tmp_path) as auth:
        auth.add_token(SECRET)
        done = isolated(site, CALL, auth.address, str(tmp_path / "billing"), SECRET, MODEL)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["cost"] == 5_000_000
    assert {"gateway", "grpc", "google"} <= set(told["loaded"]) <= {"gateway", "grpc", "google", "typing_extensions"}


def test_the_command_says_what_to_install_where_only_the_client_is(site):
    for arguments in (("auth",), ("up",), ("--help",)):
        code = f"from clients.cli.__main__ import main; sys.argv = ['gateway', *{arguments!r}]; sys.exit(main())"
        done = isolated(site, code)
        assert (done.returncode, done.stdout) == (2, "")
        assert "pip install 'gateway-zero[services]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_wheel_is_typed_and_requires_grpcio_and_protobuf_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        required = HeaderParser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist") or []
    assert "gateway/py.typed" in names
    assert "gateway/stubs/auth/v1/auth_pb2.pyi" in names
    plain = sorted(text.partition("<")[0].partition(">")[0] for text in required if "extra" not in text)
    assert plain == ["grpcio", "protobuf"]


def test_log_events_of_the_client_are_snake_case():
    events = [
        re.match(r"\s*\"([^\"%(:]*)", text)
        for path in sorted((REPOSITORY / "gateway" / "client").glob("*.py"))
        for text in re.split(r"_log\.(?:debug|info|warning|error|exception)\(", path.read_text())[1:]
    ]
    assert len(events) > 15
    assert [found and found[1] for found in events if found is None or not re.fullmatch(r"[a-z]+(_[a-z]+)+ ?", found[1])] == []
