"""`gateway token …` and `gateway admin passwd` against a real admin service."""

from __future__ import annotations

import base64
import json
import time

import pytest

from clients.cli import wire
from clients.cli.app import run
from gateway import tokens
from gateway.stubs.admin.v1 import tokens_pb2 as pb
from services.proxy import admin_json
from tests.clients.conftest import Installation


def test_a_token_has_the_fields_and_values_that_the_http_api_gives_it() -> None:
    full = pb.Token(id=7, name="n", allowed_models=["a"], max_amount_nanos=5, status=pb.TOKEN_STATUS_ACTIVE, weak=True)
    full.expires_at.FromJsonString("2027-01-01T23:59:59.999999Z")
    full.requests_per_minute, full.max_parallel_requests, full.allowed_ips[:] = 60, 0, ["192.0.2.7"]
    full.resets_at.FromJsonString("2026-11-30T00:00:00Z")
    full.created_at.FromJsonString("2026-11-23T20:00:00Z")
    for token in (full, pb.Token(id=8, budget_mode=pb.BUDGET_MODE_SOFT, status=pb.TOKEN_STATUS_EXHAUSTED)):
        token.created_at.GetCurrentTime()
        if token.budget_mode == pb.BUDGET_MODE_UNSPECIFIED:
            token.budget_mode = pb.BUDGET_MODE_STRICT
        if token.budget_period == pb.BUDGET_PERIOD_UNSPECIFIED:
            token.budget_period = pb.BUDGET_PERIOD_WEEKLY
        assert wire.token_to_json(token) == admin_json.token_to_json(token)


def test_create_shows_the_secret_once_with_everything_that_was_asked_for(installation: Installation) -> None:
    done = installation.process(
        *("token", "create", "--name", "app", "--max-amount", "5", "--models", "gpt-4*,claude-3", "--json"),
        *("--expires-at", "2027-01-01", "--customer", "acme", "--remark", "for tests"),
    )
    made = json.loads(done.stdout)
    assert tokens.is_plausible(made["token"])
    assert made["name"] == "app"
    assert made["max_amount"] == 5.0
    assert made["allowed_models"] == ["gpt-4*", "claude-3"]
    assert made["expires_at"].startswith("2027-01-01T23:59:59")
    assert made["status"] == "active"
    assert (made["customer"], made["remark"]) == ("acme", "for tests")
    shown = installation.answer("token", "show", "app")
    assert shown == {key: value for key, value in made.items() if key not in ("token", "warnings")}
    assert made["token"] not in installation.gateway("token", "list").stdout


def test_a_token_is_switched_topped_up_rotated_and_deleted(installation: Installation) -> None:
    made = installation.answer("token", "create", "--name", "cycle", "--max-amount", "0.25")
    number = str(made["id"])
    assert installation.answer("token", "disable", "cycle")["status"] == "disabled"
    assert installation.answer("token", "enable", number)["enabled"] is True
    assert installation.answer("token", "topup", "cycle", "1.5")["max_amount"] == 1.75
    rotated = installation.answer("token", "rotate", "cycle")
    assert tokens.is_plausible(rotated["token"])
    assert rotated["token"] != made["token"]
    assert installation.answer("token", "delete", "cycle") == {"id": made["id"], "deleted": True}
    gone = installation.gateway("token", "show", number, check=False)
    assert gone.returncode == 1
    assert gone.stderr.count("\n") == 1


def test_limits_are_given_changed_one_by_one_and_taken_away(installation: Installation) -> None:
    made = installation.answer(
        *("token", "create", "--name", "limited", "--max-amount", "5", "--period", "daily", "--requests-per-minute", "60"),
        *("--tokens-per-minute", "0", "--parallel", "5", "--ips", "192.0.2.7, 10.0.0.0/8"),
    )
    limits = {
        "budget_period": "daily",
        "requests_per_minute": 60,
        "tokens_per_minute": 0,
        "max_parallel_requests": 5,
        "allowed_ips": ["192.0.2.7", "10.0.0.0/8"],
    }
    assert {name: made[name] for name in limits} == limits
    text = installation.gateway("token", "show", "limited").stdout
    assert "5.00 daily" in text and "10.0.0.0/8" in text and "starts anew" in text
    changed = installation.answer("token", "update", "limited", "--requests-per-minute", "61", "--remark", "more")
    assert {name: changed[name] for name in limits} == limits | {"requests_per_minute": 61}
    assert (changed["remark"], changed["max_amount"]) == ("more", 5.0)
    cleared = installation.answer(
        *("token", "update", "limited", "--requests-per-minute", "none", "--tokens-per-minute", "none", "--parallel", "none"),
        *("--ips", "", "--period", "total", "--max-amount", "none", "--budget-mode", "soft", "--expires-at", "2099-01-01"),
    )
    assert {name: cleared[name] for name in limits} == {**dict.fromkeys(limits), "budget_period": "total", "allowed_ips": []}
    assert (cleared["max_amount"], cleared["budget_mode"], cleared["expires_at"][:10]) == (None, "soft", "2099-01-01")
    assert installation.answer("token", "update", "limited", "--expires-at", "none")["expires_at"] is None


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--requests-per-minute", "many"),
        ("--parallel", "-1"),
        ("--tokens-per-minute", "2147483648"),
        ("--ips", "example.org"),
        ("--period", "yearly"),
    ],
)
def test_what_is_no_change_is_refused_before_anything_happens(installation: Installation, options: tuple[str, ...]) -> None:
    made = installation.answer("token", "create", "--name", "unchanged")
    refused = installation.gateway("token", "update", str(made["id"]), *options, check=False)
    assert refused.returncode == 2, refused.stderr
    assert installation.answer("token", "show", str(made["id"]))["version"] == 1


def test_a_rotation_with_a_grace_time_says_until_when_the_old_secret_works(installation: Installation) -> None:
    installation.answer("token", "create", "--name", "graced")
    assert "works until" in installation.gateway("token", "rotate", "graced", "--grace", "3600").stdout
    assert installation.answer("token", "show", "graced")["previous_valid_until"] is not None
    assert installation.gateway("token", "rotate", "graced", "--grace", "604801", check=False).returncode == 2


def test_a_top_up_that_revives_a_token_says_so(installation: Installation) -> None:
    installation.answer("token", "create", "--name", "spent", "--max-amount", "0")
    assert "calls pass again" in installation.gateway("token", "topup", "spent", "1").stdout
    assert installation.answer("token", "topup", "spent", "1")["revived"] is False


def test_a_chosen_secret_comes_by_standard_input_and_never_in_the_arguments(installation: Installation) -> None:
    made = installation.answer("token", "create", "--name", "chosen", "--token-stdin", stdin="my-test-token-12345\n")
    assert made["token"] == "my-test-token-12345"
    assert made["weak"] is True
    refused = installation.gateway("token", "create", "--token-stdin", stdin="short\n", check=False)
    assert refused.returncode == 2


def test_names_that_two_tokens_have_are_refused_with_both_ids(installation: Installation) -> None:
    ids = [installation.answer("token", "create", "--name", "twin")["id"] for _ in range(2)]
    refused = installation.gateway("token", "delete", "twin", check=False)
    assert refused.returncode == 2
    assert all(str(number) in refused.stderr for number in ids)


def test_the_list_is_one_line_a_token_without_a_terminal_and_goes_page_by_page(installation: Installation) -> None:
    for index in range(3):
        installation.answer("token", "create", "--name", f"page-{index}")
    lines = installation.gateway("token", "list", "--name", "page-").stdout.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["page-2", "page-1", "page-0"]
    first = installation.answer("token", "list", "--name", "page-", "--limit", "2")
    rest = installation.answer("token", "list", "--name", "page-", "--limit", "2", "--page-token", first["next_page_token"])
    assert [token["name"] for token in first["tokens"] + rest["tokens"]] == ["page-2", "page-1", "page-0"]
    assert rest["next_page_token"] is None


def test_warnings_go_to_standard_error(installation: Installation) -> None:
    made = installation.gateway("token", "create", "--name", "late", "--expires-at", "2020-01-01", "--json")
    assert json.loads(made.stdout)["warnings"]
    assert "passed" in made.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-amount", "much"),
        ("--max-amount", "1e400"),
        ("--max-amount", "-1"),
        ("--expires-at", "tomorrow"),
        ("--expires-at", "2027-13-01"),
        ("--budget-mode", "loose"),
        ("--nmae", "x"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["token", "create", *arguments]) == 2
    plain = capsys.readouterr()
    assert plain.out == ""
    assert plain.err.startswith("gateway: ")
    assert plain.err.count("\n") == 1
    assert run(["token", "create", *arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"] in plain.err


def test_what_admin_refuses_is_one_line_and_exit_code_2(installation: Installation) -> None:
    refused = installation.gateway("token", "create", "--name", "x" * 201, "--json", check=False)
    assert refused.returncode == 2
    assert "200 characters" in json.loads(refused.stdout)["error"]["message"]
    assert refused.stderr.count("\n") == 1


def test_a_password_is_set_from_standard_input_and_weak_ones_are_refused(installation: Installation) -> None:
    assert installation.answer("admin", "passwd", "--password-stdin", stdin="many horses on a hill\n") == {
        "username": "admin",
        "password_set": True,
    }
    assert installation.gateway("admin", "passwd", "--password-stdin", stdin="password\n", check=False).returncode == 2
    assert installation.gateway("admin", "passwd", "--password-stdin", stdin="\n", check=False).returncode == 2
    no_terminal = installation.gateway("admin", "passwd", check=False)
    assert no_terminal.returncode == 2
    assert "--password-stdin" in no_terminal.stderr


def test_commands_wait_for_an_admin_that_is_starting(fresh: Installation) -> None:
    fresh.gateway("init")
    fresh.start("admin")
    assert [token["name"] for token in fresh.answer("token", "list")["tokens"]] == ["first-token"]


def test_without_an_admin_it_is_one_line_and_exit_code_3_within_seconds(fresh: Installation) -> None:
    fresh.gateway("init")
    before = time.monotonic()
    refused = fresh.process("token", "list", check=False)
    assert refused.returncode == 3
    assert 5.0 <= time.monotonic() - before < 10.0
    assert "gateway up" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_without_an_identity_the_command_says_what_makes_one(fresh: Installation) -> None:
    refused = fresh.gateway("token", "list", check=False)
    assert refused.returncode == 1
    assert "gateway init" in refused.stderr


def test_no_secret_is_in_any_file_of_the_installation(installation: Installation) -> None:
    first = installation.first
    secrets = [first["token"]["token"], first["administrator"]["one_time_password"]]
    secrets.append(installation.answer("token", "create", "--name", "canary")["token"])
    for path in (path for path in installation.directory.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, path
            assert base64.b64encode(secret.encode()) not in content, path
