"""`gateway init`, `migrate`, `reconcile`, `check`, `health`: what runs on the host."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time

import pytest

from clients.cli.app import run
from gateway import tokens
from tests.clients.conftest import Installation
from tests.suite.stack import REPOSITORY


def modes(stack: Installation) -> dict[str, int]:
    found = [stack.data, *stack.data.rglob("*")]
    return {str(path.relative_to(stack.directory)): stat.S_IMODE(path.stat().st_mode) for path in found}


def test_the_first_init_makes_everything_and_shows_the_secrets(fresh: Installation) -> None:
    made = json.loads(fresh.process("init", "--json").stdout)
    assert made["made"] == {
        "certificates": ["ca", "auth", "admin", "proxy", "operator"],
        "migrations": made["made"]["migrations"],
        "token_key": True,
    }
    assert len(made["made"]["migrations"]) >= 1
    assert tokens.is_plausible(made["token"]["token"])
    assert (made["token"]["name"], made["token"]["max_amount"]) == ("first-token", 5.0)
    assert made["administrator"]["username"] == "admin"
    assert made["openai_base_url"] == f"http://127.0.0.1:{fresh.http_port}/v1"
    assert made["token"]["token"] in made["curl"]
    assert all(mode & 0o077 == 0 for mode in modes(fresh).values())
    (row,) = fresh.query("SELECT max_amount_nanos, token FROM client_tokens")
    assert row == {"max_amount_nanos": 5_000_000_000, "token": None}


def test_a_second_init_changes_and_shows_nothing(fresh: Installation) -> None:
    fresh.gateway("init")
    before = {path: path.read_bytes() for path in fresh.data.rglob("*.pem")}
    key = (fresh.data / "keys" / "token.key").read_bytes()
    again = fresh.gateway("init")
    assert again.stdout == ""
    assert fresh.answer("init") == {
        "made": {"certificates": [], "migrations": [], "token_key": False},
        "secrets_told": True,
    }
    assert {path: path.read_bytes() for path in fresh.data.rglob("*.pem")} == before
    assert (fresh.data / "keys" / "token.key").read_bytes() == key
    assert fresh.query("SELECT COUNT(*) AS n FROM client_tokens") == [{"n": 1}]


def test_without_secrets_it_leaves_them_to_the_next_init(fresh: Installation) -> None:
    assert fresh.answer("init", "--no-secrets")["secrets_told"] is False
    assert fresh.query("SELECT COUNT(*) AS n FROM administrators") == [{"n": 0}]
    assert "token" in fresh.answer("init")


def test_an_administrator_password_that_is_given_is_an_ordinary_one(fresh: Installation) -> None:
    fresh.environment["GATEWAY_ADMIN_PASSWORD"] = "many horses on a hill"
    shown = fresh.gateway("init").stdout
    assert "many horses" not in shown
    assert fresh.query("SELECT username, one_time FROM administrators") == [{"username": "admin", "one_time": 0}]


def test_a_weak_administrator_password_is_refused(fresh: Installation) -> None:
    fresh.environment["GATEWAY_ADMIN_PASSWORD"] = "changeme"
    refused = fresh.gateway("init", check=False)
    assert refused.returncode == 2
    assert "changeme" not in refused.stderr


def test_no_token_key_is_made_where_tokens_exist(fresh: Installation) -> None:
    fresh.gateway("init")
    key = fresh.data / "keys" / "token.key"
    kept = key.read_bytes()
    key.unlink()
    refused = fresh.gateway("init", check=False)
    assert refused.returncode == 1
    assert "restore it from a backup" in refused.stderr
    assert not key.exists()
    key.write_bytes(b"00" * 32)
    assert fresh.gateway("init", check=False).returncode == 1
    key.write_bytes(kept)
    fresh.gateway("init")


@pytest.mark.parametrize("broken", ["pki/auth/key.pem", "pki/proxy/cert.pem", "pki/operator/ca.pem"])
def test_a_certificate_that_is_broken_or_gone_is_issued_anew(fresh: Installation, broken: str) -> None:
    fresh.gateway("init")
    (fresh.data / broken).unlink()
    assert fresh.answer("init")["made"]["certificates"] == [broken.split("/")[1]]
    (fresh.data / broken).write_text("no certificate")
    assert fresh.answer("init")["made"]["certificates"] == [broken.split("/")[1]]


def test_killed_at_any_moment_and_run_again_it_ends_well_with_secrets_to_show(fresh: Installation) -> None:
    command = [sys.executable, "-m", "clients.cli", "init", "--json"]
    chance = random.Random(7)
    for _ in range(8):
        process = subprocess.Popen(command, cwd=REPOSITORY, env=fresh.environment, stdout=subprocess.PIPE)
        time.sleep(chance.uniform(0.3, 1.2))
        process.kill()
        output, _ = process.communicate()
        if output:
            break
    else:
        output = fresh.gateway("init", "--json").stdout.encode()
    shown = json.loads(output)
    last = fresh.answer("init")
    shown = last if "token" in last else shown  # a kill between showing and noting it: it is shown once more
    fresh.start("admin")
    (token,) = fresh.answer("token", "list")["tokens"]
    assert token["display_hint"][-4:] == shown["token"]["token"][-4:]
    assert fresh.query("SELECT COUNT(*) AS n FROM administrators") == [{"n": 1}]
    assert not list(fresh.data.rglob(".*draft"))
    assert "token" not in fresh.answer("init")


def test_secrets_that_nobody_saw_are_made_anew(fresh: Installation) -> None:
    unseen = fresh.answer("init")
    with sqlite3.connect(fresh.database) as database:
        database.execute("DELETE FROM meta WHERE key = 'first_secrets_told'")
    database.close()
    seen = fresh.answer("init")
    assert seen["token"]["id"] == unseen["token"]["id"]
    assert seen["token"]["token"] != unseen["token"]["token"]
    assert seen["administrator"]["one_time_password"] != unseen["administrator"]["one_time_password"]
    assert "token" not in fresh.answer("init")


def test_prices_and_providers_of_the_file_are_in_the_database(fresh: Installation) -> None:
    (fresh.directory / "gateway.toml").write_text(
        '[[providers]]\nname = "mock"\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:9/v1"\n'
        'api_keys = ["sk-canary-of-a-provider"]\nmodels = ["mock-*"]\n'
        '[[prices]]\nmodel = "mock-1"\ninput = "1.00"\noutput = "2.00"\n'
    )
    fresh.gateway("init")
    names = {row["name"] for row in fresh.query("SELECT name FROM providers")}
    assert names == {"mock", "demo"}
    assert len(fresh.query("SELECT 1 FROM prices WHERE source = 'file' AND model = 'mock-1'")) == 1
    assert len(fresh.query("SELECT 1 FROM prices WHERE source = 'builtin' LIMIT 100")) == 100
    assert b"sk-canary-of-a-provider" not in fresh.database.read_bytes()
    (fresh.directory / "gateway.toml").write_text("")
    assert fresh.answer("migrate") == {"applied": []}
    assert fresh.query("SELECT 1 FROM prices WHERE source = 'file' AND retired_at IS NULL") == []


def test_reconcile_finds_nothing_in_sound_books_and_names_what_differs(fresh: Installation) -> None:
    fresh.gateway("init")
    assert fresh.gateway("reconcile").stdout == "0 differences\n"
    with sqlite3.connect(fresh.database) as database:
        database.execute("UPDATE client_tokens SET held_nanos = 7")
    database.close()
    found = fresh.gateway("reconcile", check=False)
    assert found.returncode == 1
    assert "held_nanos is 7, the rows say 0" in found.stdout
    in_json = fresh.gateway("reconcile", "--json", check=False)
    assert {"subject": "token:1", "figure": "held_nanos", "stored": 7, "proven": 0} in json.loads(in_json.stdout)["differences"]


def test_reconcile_without_a_database_is_one_line(fresh: Installation) -> None:
    refused = fresh.gateway("reconcile", check=False)
    assert refused.returncode in (1, 3)
    assert refused.stderr.count("\n") == 1


def test_check_is_content_with_a_fresh_installation_and_prints_the_measured_sync(fresh: Installation) -> None:
    fresh.gateway("init")
    told = fresh.answer("check")
    assert told["ok"] is True
    subjects = {finding["subject"] for finding in told["findings"]}
    assert {"fsync", "file system", "SQLite", "database", "token key"} <= subjects


def test_check_names_every_fault(fresh: Installation) -> None:
    fresh.gateway("init")
    fresh.data.chmod(0o755)
    (fresh.data / "pki" / "proxy" / "cert.pem").unlink()
    (fresh.directory / "gateway.toml").write_text(
        '[[providers]]\nname = "mock"\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:9/v1"\n'
        'api_keys = ["sk-canary-literal", "env:NOT_SET_ANYWHERE", "file:/does/not/exist"]\nmodels = ["mock-*"]\n'
    )
    told = fresh.gateway("check", "--json", check=False)
    assert told.returncode == 1
    findings = json.loads(told.stdout)["findings"]
    faults = " ".join(finding["message"] for finding in findings if finding["level"] == "fault")
    assert "chmod 700" in faults
    assert "cert.pem" in faults
    assert "NOT_SET_ANYWHERE" in faults
    assert "/does/not/exist" in faults
    assert any(f["level"] == "warning" and "env:NAME or file:PATH" in f["message"] for f in findings)
    assert "sk-canary-literal" not in told.stdout


def test_check_tells_all_settings_that_are_wrong_at_once(fresh: Installation) -> None:
    fresh.environment |= {"GATEWAY_HTTP_PORT": "many", "GATEWAY_DRIAN": "5"}
    told = fresh.gateway("check", check=False)
    assert told.returncode == 2
    assert "GATEWAY_HTTP_PORT" in told.stdout
    assert "GATEWAY_DRIAN" in told.stdout
    other = fresh.gateway("token", "list", check=False)
    assert other.returncode == 2
    assert "GATEWAY_HTTP_PORT" in other.stderr
    assert "GATEWAY_DRIAN" in other.stderr


def test_check_refuses_a_missing_or_unwritable_data_directory(fresh: Installation) -> None:
    told = fresh.gateway("check", check=False)
    assert told.returncode == 1
    assert "gateway init" in told.stdout


def test_health_tells_who_is_ready(fresh: Installation) -> None:
    fresh.gateway("init")
    fresh.start("admin", "demo")
    deadline = time.monotonic() + 20
    while fresh.gateway("health", "demo", check=False).returncode or fresh.gateway("health", "admin", check=False).returncode:
        assert time.monotonic() < deadline
    told = fresh.gateway("health", "--all", "--timeout", "1", "--json", check=False)
    assert told.returncode == 1
    ready = {name: service["ready"] for name, service in json.loads(told.stdout)["services"].items()}
    assert ready == {"auth": False, "admin": True, "proxy": False, "demo": True}
    os.kill(fresh.processes["admin"].pid, signal.SIGSTOP)
    assert fresh.gateway("health", "admin", "--timeout", "1", check=False).returncode == 1


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ["up", "init", "check", "health", "reconcile", "migrate", "auth", "admin", "proxy", "demo", "admin passwd"]
    commands += [f"token {verb}" for verb in ("create", "list", "show", "enable", "disable", "rotate", "topup", "delete")]
    for command in commands:
        assert run([*command.split(), "--help"]) == 0
        shown = capsys.readouterr().out
        assert "Example: " in shown, command
        assert "Exit codes" in shown, command
        assert "\x1b" not in shown
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {command}: " in listed for command in commands if " " not in command)


@pytest.mark.parametrize("command", [["health", "demo", "--timeout", "0.2"], ["--help"], ["token", "create", "--help"]])
def test_a_terminal_gets_styles_unless_no_color_is_set(fresh: Installation, command: list[str]) -> None:
    shown = {}
    for no_color in (False, True):
        ours, theirs = os.openpty()
        environment = {key: value for key, value in fresh.environment.items() if key != "NO_COLOR"} | {"TERM": "xterm-256color"}
        environment |= {"NO_COLOR": "1"} if no_color else {}
        subprocess.run(
            [sys.executable, "-m", "clients.cli", *command], cwd=REPOSITORY, env=environment, stdout=theirs, check=False
        )
        os.close(theirs)
        shown[no_color] = b""
        try:
            while data := os.read(ours, 4096):
                shown[no_color] += data
        except OSError:  # the end, as Linux tells it
            os.close(ours)
    assert b"\x1b[" in shown[False]
    assert b"\x1b[" not in shown[True]


def test_help_loads_neither_grpc_nor_the_database() -> None:
    script = "import sys; from clients.cli.app import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"grpc", "peewee", "aiohttp"} & set(done.stderr.split())
