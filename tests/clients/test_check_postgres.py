"""What `gateway check` says of a PostgreSQL database, and what init and reconcile do with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest


def gateway(tmp_path: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GATEWAY_DATA_DIR": str(tmp_path), "GATEWAY_DATABASE_URL": url}
    command = [sys.executable, "-m", "clients.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    return {one["subject"]: (one["level"], one["message"]) for one in json.loads(done.stdout)["findings"]}


@pytest.fixture
def installation(tmp_path: Path, postgres_url: str) -> tuple[Path, str]:
    done = gateway(tmp_path, postgres_url, "init", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["made"]["migrations"][0] == "0001_ledger"
    return tmp_path, postgres_url


def test_a_sound_server_is_found_sound_and_what_it_is_careless_about_is_told(installation):
    found = findings(gateway(*installation, "check", "--json"))
    assert found["database"] == ("ok", "the server's, schema up to date")
    assert found["token key"][0] == found["PostgreSQL"][0] == found["PostgreSQL round trip"][0] == "ok"
    assert found["PostgreSQL fsync"][0] == "warning"  # the tests' server runs without
    assert gateway(*installation, "reconcile").stdout == "0 differences\n"


def test_init_again_makes_nothing_new_and_says_no_secret(installation):
    done = gateway(*installation, "init", "--json")
    assert json.loads(done.stdout)["made"] == {"certificates": [], "migrations": [], "token_key": False}
    assert "password" not in done.stdout


def test_what_does_not_add_up_is_found_there_too(installation):
    with psycopg.connect(installation[1]) as connection:
        connection.execute("UPDATE client_tokens SET total_spent_nanos = 7")
    done = gateway(*installation, "reconcile", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["differences"][0]["stored"] == 7


def test_a_server_that_is_away_is_one_clear_line_without_its_password(tmp_path):
    done = gateway(tmp_path, "postgresql://gateway:secret-word@127.0.0.1:1/gateway", "init")
    assert done.returncode != 0
    assert "127.0.0.1:1/gateway is away" in done.stderr
    assert "secret-word" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
