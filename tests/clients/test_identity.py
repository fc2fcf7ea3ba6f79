"""`gateway identity`: what it issues opens auth, and nothing that it was not issued for."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time

import pytest

from clients.cli import inspection
from clients.cli.identity import DEFAULT_METHODS, known_methods
from gateway.client import Gateway
from gateway.errors import NotFound, PermissionDenied, Unauthenticated
from gateway.ids import uuid7
from gateway.process.settings import load_settings
from services.auth.access import ACCESS
from tests.suite.stack import REPOSITORY


@pytest.fixture(scope="module")
def auth(installation):
    """The installation with auth running, and one token."""
    installation.insert_token("my-identity-token", max_amount=1.0)
    installation.start("auth")
    return installation


def client(stack, folder, timeout=15.0):
    return Gateway(f"127.0.0.1:{stack.auth_port}", identity=folder, timeout=timeout)


def test_an_identity_opens_what_a_service_needs(auth, tmp_path):
    told = auth.gateway("identity", "create", "billing", "--out", str(tmp_path / "billing")).stdout
    assert "GATEWAY_IDENTITY_DIR" in told
    assert f"GATEWAY_AUTH_ADDRESS=127.0.0.1:{auth.auth_port}" in told
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "billing").iterdir()} == {
        "cert.pem": 0o600,
        "key.pem": 0o600,
        "ca.pem": 0o600,
    }
    with client(auth, tmp_path / "billing") as gateway:
        with gateway.call("my-identity-token", model="demo", input_text="Hello", max_output_tokens=20) as call:
            call.usage(input_tokens=2, output_tokens=3)
            assert gateway.renew(call.grant) == {call.request_id}
        assert call.receipt.delivered
        assert gateway.usage("my-identity-token").total_tokens == 5
        with pytest.raises(PermissionDenied, match="record_unadmitted"):
            gateway.record_usage(uuid7(), input_tokens=1, token_id=1)


def test_a_narrow_identity_opens_only_what_it_names(auth, tmp_path):
    out = tmp_path / "importer"
    made = auth.answer(
        "identity", "create", "importer", "--rpc", "RecordUsage,GetTokenUsage", "--record-unadmitted", "--out", str(out)
    )
    assert (made["methods"], made["rights"], made["state"]) == (["RecordUsage", "GetTokenUsage"], ["record_unadmitted"], "good")
    with client(auth, out) as gateway:
        with pytest.raises(PermissionDenied, match=r"gateway identity create importer --force .*--allow-method ValidateToken"):
            gateway.check("my-identity-token")
        with pytest.raises(NotFound, match="no token 4711"):
            gateway.record_usage(uuid7(), input_tokens=1, token_id=4711)


def test_a_renewed_identity_keeps_its_rights(auth, tmp_path):
    folder = str(tmp_path / "nightly")
    first = auth.answer("identity", "create", "nightly", "--allow-method", "GetTokenUsage", "--out", folder)
    refused = auth.gateway("identity", "create", "nightly", "--out", folder, check=False)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    second = auth.answer("identity", "create", "nightly", "--out", folder, "--force")
    assert second["methods"] == first["methods"] == ["GetTokenUsage"]
    assert second["serial"] != first["serial"]
    listed = {one["name"]: one for one in auth.answer("identity", "list")["identities"]}
    assert listed["nightly"]["serial"] == second["serial"]
    assert "GetTokenUsage" in auth.gateway("identity", "show", "nightly").stdout


@pytest.mark.parametrize("name", ["auth", "admin", "proxy", "operator", "ca", "issued", "Billing", "../x", ""])
def test_a_name_that_is_the_gateways_own_or_none_is_refused(installation, tmp_path, name):
    done = installation.gateway("identity", "create", name, "--out", str(tmp_path / "out"), check=False)
    assert done.returncode != 0
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_and_that_of_the_proxy_are_refused(installation, tmp_path):
    for method in ("Validate", "Beat"):
        done = installation.gateway(
            "identity", "create", "x", "--allow-method", method, "--out", str(tmp_path / "x"), check=False
        )
        assert done.returncode == 2
        assert "ValidateToken" in done.stderr


def test_the_methods_that_a_certificate_can_name_are_those_that_auth_lets_it_call():
    named = {method.rpartition("/")[2] for method, rule in ACCESS.items() if rule.named}
    assert set(known_methods()) == named
    assert set(DEFAULT_METHODS) <= named


def test_an_identity_comes_as_a_tar_where_there_is_no_folder_to_write_to(installation):
    done = subprocess.run(
        [sys.executable, "-m", "clients.cli", "identity", "create", "remote", "--tar"],
        cwd=REPOSITORY,
        env=installation.environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert sorted(archive.getnames()) == ["remote/ca.pem", "remote/cert.pem", "remote/key.pem"]
        assert {member.mode & 0o777 for member in archive.getmembers()} == {0o600}
    assert done.stderr == b""


def test_an_identity_is_given_also_where_it_cannot_be_noted(installation, tmp_path):
    issued = installation.data / "pki" / "issued"
    aside = issued.rename(issued.with_name("aside")) if issued.exists() else None
    issued.write_text("in the way")
    try:
        done = installation.gateway("identity", "create", "unnoted", "--out", str(tmp_path / "unnoted"))
    finally:
        issued.unlink()
        if aside is not None:
            aside.rename(issued)
    assert "identity list" in done.stderr
    assert (tmp_path / "unnoted" / "key.pem").exists()


def test_the_check_warns_of_an_identity_that_ends_soon(installation, tmp_path):
    installation.gateway("identity", "create", "shortlived", "--days", "3", "--out", str(tmp_path / "s"))
    settings = load_settings(installation.environment)
    found = {finding.subject: finding for finding in inspection.internal_services(settings)}
    assert found["identity shortlived"].level == inspection.WARNING
    assert "gateway identity create shortlived --force" in found["identity shortlived"].message


def test_without_the_services_extra_the_command_says_what_to_install(tmp_path):
    """As after `pip install gateway-zero`: everything beyond grpcio and protobuf is missing."""
    code = (
        "import sys, importlib.util as util; find = util.find_spec;"
        "util.find_spec = lambda name, *rest: None if name in {'cyclopts', 'structlog', 'peewee'} else find(name, *rest);"
        "from clients.cli.__main__ import main; sys.argv = ['gateway', 'auth']; sys.exit(main())"
    )
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'gateway-zero[services]'" in done.stderr


@pytest.mark.parametrize("days", ["0", "-5", "36501", "999999999"])
def test_an_identity_of_no_possible_length_is_refused_in_one_line(installation, tmp_path, days):
    done = installation.gateway("identity", "create", "lasting", "--days", days, "--out", str(tmp_path / "s"), check=False)
    assert (done.returncode, done.stderr) == (2, "gateway: --days is 1 to 36500\n")


def test_a_revoked_identity_is_refused_from_the_next_call_on_and_a_new_one_is_good(auth, tmp_path):
    folder = tmp_path / "leaked"
    auth.gateway("identity", "create", "leaked", "--out", str(folder))
    with client(auth, folder) as gateway:
        gateway.check("my-identity-token")
        told = auth.gateway("identity", "revoke", "leaked").stdout
        assert "are refused" in told and "identity create leaked --force" in told
        for _ in range(20):
            with pytest.raises(Unauthenticated, match="certificate of leaked is revoked"):
                gateway.check("my-identity-token")
    assert auth.answer("identity", "show", "leaked")["state"] == "revoked"
    auth.gateway("identity", "create", "leaked", "--out", str(folder), "--force")
    with client(auth, folder) as gateway:
        gateway.check("my-identity-token")
    assert {one["name"]: one["state"] for one in auth.answer("identity", "list")["identities"]}["leaked"] == "good"


def test_the_latest_certificate_stays_good_where_that_is_asked(auth, tmp_path):
    for number in ("first", "second"):
        auth.gateway("identity", "create", "kept", "--out", str(tmp_path / number), "--force")
        time.sleep(1.1)  # certificates tell when they were issued to the second
    auth.gateway("identity", "revoke", "kept", "--keep-latest")
    with client(auth, tmp_path / "second") as gateway:
        gateway.check("my-identity-token")
    with client(auth, tmp_path / "first") as gateway, pytest.raises(Unauthenticated):
        gateway.check("my-identity-token")


@pytest.mark.parametrize("name", ["auth", "admin", "Billing", ""])
def test_what_no_client_is_called_is_not_revoked(auth, name):
    assert auth.gateway("identity", "revoke", name, check=False).returncode == 2


def test_a_name_that_is_not_known_here_is_revoked_with_a_warning(auth):
    assert "no identity was issued to elsewhere here" in auth.gateway("identity", "revoke", "elsewhere").stderr
    assert auth.gateway("identity", "revoke", "elsewhere", "--keep-latest", check=False).returncode == 1
