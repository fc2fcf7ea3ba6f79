"""`gateway token adjust`, `gateway price` and `gateway reprice`, against a running admin."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from gateway.ids import uuid7
from gateway.storage.database import connect
from tests.suite.stack import Stack


@pytest.fixture
def token(installation):
    return installation.answer("token", "create", "--name", f"books-{uuid7()[-6:]}", "--max-amount", "10")


def test_a_correction_is_booked_and_listed(installation, token):
    name = token["name"]
    charged = installation.answer("token", "adjust", name, "--amount", "2.25", "--reason", "made elsewhere")
    assert (charged["amount"], charged["amount_spent"], charged["actor"]) == (2.25, 2.25, "operator")
    back = installation.answer("token", "adjust", name, "--amount", "-1.50", "--reason", "too much")
    assert (back["amount"], back["amount_spent"]) == (-1.5, 0.75)
    listed = installation.answer("token", "adjustments", name)
    assert [one["amount"] for one in listed["adjustments"]] == [-1.5, 2.25]
    assert installation.answer("token", "show", name)["amount_spent"] == 0.75
    assert "-1.50\toperator\ttoo much" in installation.gateway("token", "adjustments", name).stdout
    assert installation.answer("reconcile") == {"differences": []}


@pytest.mark.parametrize(
    ("amount", "code", "said"),
    [
        ("-1", 1, "more than can be given back"),
        ("much", 2, "an amount is a number"),
        ("--1", 2, "an amount is"),
        ("0", 2, "amount is not 0"),
    ],
)
def test_what_cannot_be_booked_is_said_in_one_line(installation, token, amount, code, said):
    done = installation.gateway("token", "adjust", token["name"], "--amount", amount, "--reason", "x", check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_price_is_set_listed_and_retired(installation):
    made = installation.answer(
        "price", "set", "my-model", "--rate", "input=1.00", "--rate", "output=2.00", "--from", "2036-01-01"
    )
    assert made["rates"] == {"input": "1.00", "output": "2.00"}
    assert (made["valid_from"], made["source"]) == ("2036-01-01T00:00:00Z", "admin")
    assert [one["id"] for one in installation.answer("price", "list", "--model", "my-model")["prices"]] == [made["id"]]
    assert installation.answer("price", "retire", str(made["id"]))["retired_at"]
    assert installation.answer("price", "list", "--source", "admin", "--model", "my-model")["prices"] == []
    assert "my-model" in installation.gateway("price", "list", "--source", "admin", "--retired").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "input"), "unit=decimal"),
        (("--rate", "input=x"), "rate"),
        (("--rate", "input=1", "--from", "2020-01-01"), "past"),
    ],
)
def test_a_wrong_price_is_a_fault_of_the_command_line(installation, arguments, said):
    done = installation.gateway("price", "set", "m", *arguments, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def settled_call(installation: Stack, token_id: int) -> None:
    """A call to a model without a price, that the provider counted."""
    with closing(connect(f"sqlite:///{installation.data}/gateway.db", busy_timeout=5.0)) as db, db.write():
        now = db.query("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')")[0][0]
        db.run(
            "INSERT INTO requests (request_id, token_id, identity, state, request_model, provider, candidates, admitted_at,"
            " settled_at, input_tokens, output_tokens, usage_source, report_digest) VALUES"
            " (?, ?, 'proxy', 'settled', 'late-model', 'late', ?, ?, ?, 1000000, 0, 'provider', 'x')",
            (uuid7(), token_id, json.dumps([["late", "late-model", 0]]), now, now),
        )
        db.run(
            "INSERT INTO daily_totals (token_id, day, model, requests, input_tokens) VALUES (?, ?, 'late-model', 1, 1000000)",
            (token_id, now[:10]),
        )
        db.run("UPDATE client_tokens SET total_tokens = 1000000, request_count = 1 WHERE id = ?", (token_id,))


def test_calls_are_repriced_after_a_look_and_once(installation, token):
    settled_call(installation, token["id"])
    installation.answer("price", "set", "late-model", "--rate", "input=3", "--rate", "output=3")
    since = ("--since", "2026-01-01", "--model", "late-model")
    look = installation.answer("reprice", *since, "--dry-run")
    assert look["dry_run"]
    assert look["tokens"] == [
        {
            "token_id": token["id"],
            "calls": 1,
            "left_out": 0,
            "charged": 0.0,
            "would_cost": 3.0,
            "difference": 3.0,
            "adjustment_ids": [],
        }
    ]
    refused = installation.gateway("reprice", *since, check=False)
    assert refused.returncode == 2
    assert "reason is missing" in refused.stderr
    assert installation.answer("token", "show", token["name"])["amount_spent"] == 0.0
    booked = json.loads(installation.gateway("reprice", *since, "--reason", "had no price", "--json").stdout)
    assert len(booked["tokens"][0]["adjustment_ids"]) == 1
    assert installation.answer("reprice", *since, "--reason", "had no price")["difference"] == 0.0
    assert installation.answer("token", "show", token["name"])["amount_spent"] == 3.0
    assert "1 calls, 0.00 USD would be added" in installation.gateway("reprice", *since, "--dry-run").stdout
    assert installation.answer("reconcile") == {"differences": []}
