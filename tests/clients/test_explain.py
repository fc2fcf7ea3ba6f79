"""`gateway explain` against real auth and admin services."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from gateway.ids import uuid7
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceStub
from tests.clients.conftest import Installation
from tests.suite.stack import wait_for

CONFIG = """
[[providers]]
name = "local"
kind = "openai-compatible"
base_url = "http://127.0.0.1:9/v1"
models = ["llama-*"]

[[models]]
name = "fast"
targets = [{ provider = "demo", model = "demo", weight = 1 }, { provider = "local", model = "llama-3", weight = 3 }]
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation of its own with a provider and an alias, auth and admin running, and a token `app` of a dollar."""
    with Installation(tmp_path_factory.mktemp("explain"), CONFIG) as stack:
        stack.process("init", "--json")
        stack.start("auth", "admin", "proxy")
        wait_for("auth", lambda: stack.listens(stack.auth_port))
        wait_for("admin", lambda: stack.listens(stack.admin_port))
        wait_for("the proxy's routing", lambda: stack.query("SELECT value FROM meta WHERE key = 'routing'"))
        stack.secret = stack.answer("token", "create", "--name", "app", "--max-amount", "1", "--models", "demo,fast,llama-*")[
            "token"
        ]
        yield stack


def test_a_call_that_would_pass_is_granted_with_its_price_and_exit_code_0(running: Installation) -> None:
    before = running.query("SELECT COUNT(*) AS n FROM requests")
    told = running.answer("explain", "--token", "app", "--model", "demo", "--input-tokens", "2000", "--max-output-tokens", "50")
    assert (told["verdict"], told["refusal"]) == ("granted", None)
    assert {rule["verdict"] for rule in told["rules"]} == {"pass"}
    [candidate] = told["candidates"]
    assert (candidate["provider"], candidate["model"], candidate["hold"]) == ("demo", "demo", told["hold"])
    assert candidate["price_source"] == "builtin"
    assert running.query("SELECT COUNT(*) AS n FROM requests") == before


def test_a_refused_call_is_told_rule_by_rule_with_exit_code_4(running: Installation) -> None:
    done = running.gateway("explain", "--token", "app", "--model", "gpt-4o", check=False)
    assert done.returncode == 4
    rows = {line.split("\t")[0]: line.split("\t") for line in done.stdout.splitlines()}
    assert rows["model_allowed"][1:4] == ["refuse", "demo,fast,llama-*", "gpt-4o"]
    assert rows["budget_fits"][1] == "pass"
    assert "refused at" in done.stdout.splitlines()[-1]
    assert "by model_allowed: This token is not for this model." in done.stdout.splitlines()[-1]


def test_the_token_is_named_by_its_id_its_name_or_its_secret(running: Installation) -> None:
    number = str(running.answer("token", "show", "app")["id"])
    for named in (("--token", "app"), ("--token", number)):
        assert str(running.answer("explain", *named, "--model", "demo")["token_id"]) == number
    told = running.answer("explain", "--token-stdin", "--model", "demo", stdin=f"{running.secret}\n")
    assert str(told["token_id"]) == number
    unknown = running.gateway("explain", "--token-stdin", "--model", "demo", "--json", stdin="nobody-has-it", check=False)
    assert unknown.returncode == 4
    assert json.loads(unknown.stdout)["refusal"]["reason"] == "token_unknown"


def test_an_alias_is_explained_at_every_place_where_it_may_go(running: Installation) -> None:
    done = running.gateway("explain", "--token", "app", "--model", "fast", "--json", check=False)
    told = json.loads(done.stdout)
    assert [(c["provider"], c["model"]) for c in told["candidates"]] == [("demo", "demo"), ("local", "llama-3")]
    assert (done.returncode, told["refusal"]["reason"]) == (4, "model_not_priced")
    verdicts = {rule["rule"]: rule["verdict"] for rule in told["rules"]}
    assert (verdicts["priced"], verdicts["budget_fits"]) == ("refuse", "not_computed")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--token", "nobody", "--model", "demo"), 1, "there is no token 'nobody'"),
        (("--token", "4711", "--model", "demo"), 1, "there is no token 4711"),
        (("--token", "0", "--model", "demo"), 1, "there is no token 0"),
        (("--token", "99999999999999999999", "--model", "demo"), 1, "there is no token 99999999999999999999"),
        (("--token", str(1 << 63), "--model", "demo"), 1, f"there is no token {1 << 63}"),
        (("--token", "9" * 5000, "--model", "demo"), 1, "there is no token 999"),
        (("--request", "x", "--client-ip", "10.0.0.9"), 2, "--request stands alone"),
        (("--request", "x", "--input-tokens", "0"), 2, "--request stands alone"),
        (("--request", "x", "--max-output-tokens", "5"), 2, "--request stands alone"),
        (("--token", "app"), 2, "--model"),
        (("--model", "demo"), 2, "--token"),
        (("--token", "app", "--model", "demo", "--input-tokens", "-1"), 2, "input_token_ceiling"),
    ],
)
def test_what_cannot_be_explained_is_one_clear_line(running, arguments, code, word) -> None:
    done = running.gateway("explain", *arguments, check=False)
    assert done.returncode == code
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_token_on_the_command_line_is_taken_with_a_warning_and_not_told_again(running: Installation) -> None:
    done = running.gateway("explain", "--token", running.secret, "--model", "demo", "--json", check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["verdict"] == "granted"
    assert "--token-stdin" in done.stderr
    assert running.secret not in done.stdout + done.stderr


def test_an_auth_that_is_away_is_said_with_exit_code_3(fresh: Installation) -> None:
    fresh.gateway("init", "--no-secrets")
    done = fresh.gateway("explain", "--token", "1", "--model", "demo", "--json", check=False)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "auth_unavailable"


def test_a_refused_call_and_an_admitted_one_are_found_by_their_ids(running: Installation) -> None:
    refused, admitted = uuid7(), uuid7()
    with sync_channel(f"127.0.0.1:{running.auth_port}", Identity.load(running.data / "pki" / "proxy"), "auth") as channel:
        ask = AuthServiceStub(channel).ValidateToken
        call = {"token": running.secret, "input_token_ceiling": 10, "max_output_tokens": 10, "client_ip": "192.0.2.7"}
        assert ask(pb.ValidateTokenRequest(request_id=refused, request_model="gpt-4", **call)).HasField("denial")
        assert ask(pb.ValidateTokenRequest(request_id=admitted, request_model="demo", **call)).HasField("grant")
    wait_for("auth has written it", lambda: running.gateway("explain", "--request", refused, check=False).returncode == 0)
    told = running.answer("explain", "--request", refused)
    assert (told["state"], told["reason"], told["token_name"]) == ("refused", "model_not_allowed", "app")
    assert (told["model"], told["client_ip"]) == ("gpt-4", "192.0.2.7")
    lines = running.gateway("explain", "--request", refused).stdout
    assert "This token is not for this model." in lines
    assert "(app)" in lines
    assert running.answer("explain", "--request", admitted)["state"] == "admitted"
    assert "admitted" in running.gateway("explain", "--request", admitted).stdout
    unknown = running.gateway("explain", "--request", uuid7(), check=False)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert running.gateway("explain", "--request", refused, "--model", "demo", check=False).returncode == 2
