"""Limits, grace times and customers, as administrators set and see them over gRPC and HTTP."""

from __future__ import annotations

import json

import pytest

from gateway.storage import models
from gateway.stubs.admin.v1 import tokens_pb2, usage_pb2, usage_pb2_grpc
from tests.admin.calls import DOLLAR, audited, create, delete, get, reason, rotate, top_up, update

LIMITS = {
    "requests_per_minute": 60,
    "tokens_per_minute": 0,
    "max_parallel_requests": 5,
    "budget_period": "monthly",
    "allowed_ips": ["192.0.2.7", "10.0.0.0/8"],
}


async def make(door, body):
    answer = await door.send("POST", "/admin/tokens", body)
    assert answer.status == 201, answer.text
    return answer.json


async def test_limits_are_set_shown_changed_and_cleared(door):
    made = await make(door, LIMITS | {"max_amount": 5, "allowed_ips": "192.0.2.7/32, 10.1.2.3/8"})
    assert {name: made[name] for name in LIMITS} == LIMITS
    assert (made["resets_at"], made["period_spent"], made["open_calls"]) == ("2026-12-01T00:00:00Z", 0.0, 0)
    path = f"/admin/tokens/{made['id']}"
    kept = (await door.send("PATCH", path, {"requests_per_minute": 61})).json
    assert {name: kept[name] for name in LIMITS} == LIMITS | {"requests_per_minute": 61}
    cleared = (await door.send("PATCH", path, dict.fromkeys(LIMITS))).json
    assert {name: cleared[name] for name in LIMITS} == {**dict.fromkeys(LIMITS), "budget_period": "total", "allowed_ips": []}
    assert cleared["resets_at"] is None
    emptied = (await door.send("PATCH", path, {"allowed_ips": []})).json
    assert emptied["allowed_ips"] == []
    [last, *_] = (await door.send("GET", "/admin/audit")).json["records"][1:2]
    assert (last["before"]["requests_per_minute"], last["after"]["requests_per_minute"]) == (61, None)
    assert (last["before"]["allowed_ips"], last["after"]["allowed_ips"]) == (LIMITS["allowed_ips"], [])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("requests_per_minute", -1, "whole number"),
        ("requests_per_minute", 1.5, "whole number"),
        ("tokens_per_minute", True, "whole number"),
        ("max_parallel_requests", 2**31, "is 0 to 2147483647"),
        ("max_parallel_requests", "5", "whole number"),
        ("budget_period", "yearly", '"weekly"'),
        ("allowed_ips", "192.0.2.7,example.org", "'example.org' is no address"),
        ("allowed_ips", ["10.0.0.0/33"], "'10.0.0.0/33' is no address"),
        ("allowed_ips", 7, "takes a list such as"),
        ("allowed_ips", ["10.0.0.1"] * 101, "at most 100"),
        ("open_calls", 1, "cannot be set here"),
        ("resets_at", "2027-01-01", "cannot be set here"),
    ],
)
async def test_what_is_no_limit_is_refused_by_name(door, field, value, says):
    answer = await door.send("POST", "/admin/tokens", {field: value})
    assert (answer.status, answer.json["error"]["param"]) == (400, field), answer.text
    assert says in answer.json["error"]["message"]


def test_the_rpcs_refuse_what_the_door_would(tokens):
    assert reason(create, tokens, requests_per_minute=-1) == "INVALID_ARGUMENT"
    assert reason(create, tokens, tokens_per_minute=2**31) == "INVALID_ARGUMENT"
    assert reason(create, tokens, budget_period=9) == "INVALID_ARGUMENT"
    assert reason(create, tokens, allowed_ips=["nonsense"]) == "INVALID_ARGUMENT"
    made = create(tokens, max_parallel_requests=2**31 - 1, budget_period=tokens_pb2.BUDGET_PERIOD_WEEKLY).token
    assert made.resets_at.ToJsonString() == "2026-11-30T00:00:00Z"
    for read_only in ("open_calls", "resets_at", "period_spent_nanos", "previous_valid_until"):
        assert reason(update, tokens, made.id, read_only) == "INVALID_ARGUMENT"
    nothing = update(tokens, made.id, "max_parallel_requests", max_parallel_requests=0).token
    assert (nothing.HasField("max_parallel_requests"), nothing.max_parallel_requests) == (True, 0)
    assert not update(tokens, made.id, "max_parallel_requests").token.HasField("max_parallel_requests")


def test_a_period_that_has_ended_is_shown_at_an_end(tokens, clock, db):
    made = create(tokens, max_amount_nanos=DOLLAR, budget_period=tokens_pb2.BUDGET_PERIOD_DAILY).token
    row = models.ClientToken
    row.update(period_spent_nanos=DOLLAR, total_spent_nanos=DOLLAR).where(row.id == made.id).execute(db)
    spent = get(tokens, made.id)
    assert (spent.status, spent.remaining_nanos) == (tokens_pb2.TOKEN_STATUS_EXHAUSTED, 0)
    clock.move(days=1)
    fresh = get(tokens, made.id)
    assert (fresh.status, fresh.remaining_nanos, fresh.amount_spent_nanos) == (
        tokens_pb2.TOKEN_STATUS_ACTIVE,
        DOLLAR,
        DOLLAR,
    )


async def test_a_rotation_takes_a_grace_time(door):
    made = await make(door, {})
    path = f"/admin/tokens/{made['id']}"
    rotated = (await door.send("POST", f"{path}/rotate", {"grace_seconds": 3600})).json
    assert rotated["previous_valid_until"] == "2026-11-23T13:00:00Z"
    assert (await door.send("GET", path)).json["previous_valid_until"] == "2026-11-23T13:00:00Z"
    assert (await door.send("POST", f"{path}/rotate")).json["previous_valid_until"] is None
    for wrong in (-1, 604_801, "1h", 0.5):
        assert (await door.send("POST", f"{path}/rotate", {"grace_seconds": wrong})).status == 400


def test_a_repeated_rotation_must_ask_for_the_same_grace_time(tokens):
    made = create(tokens).token
    again = "0193e2c4-7b1a-7c3d-9f00-1a2b3c4d5e6f"
    rotate(tokens, made.id, again)
    request = tokens_pb2.RotateTokenRequest(id=made.id, request_id=again, grace_seconds=60)
    assert reason(tokens.RotateToken, request) == "ALREADY_EXISTS"


async def test_a_top_up_says_whether_it_revived_the_token(door, db):
    made = await make(door, {"max_amount": 1})
    path = f"/admin/tokens/{made['id']}/topup"
    assert (await door.send("POST", path, {"amount": 1})).json["revived"] is False
    row = models.ClientToken
    row.update(period_spent_nanos=2 * DOLLAR, total_spent_nanos=2 * DOLLAR).where(row.id == made["id"]).execute(db)
    topped = (await door.send("POST", path, {"amount": 1})).json
    assert (topped["revived"], topped["status"], topped["remaining"]) == (True, "active", 1.0)


async def test_each_customer_has_totals_of_all_tokens_that_were_made_for_them(door, db, tokens, call):
    for customer, spent in (("acme", 1), ("acme", 2), ("", 5), ("Zoë", 3)):
        made = create(tokens, customer=customer).token
        row = models.ClientToken
        row.update(total_spent_nanos=spent * DOLLAR, prompt_tokens=10, completion_tokens=spent, request_count=1).where(
            row.id == made.id
        ).execute(db)
    delete(tokens, 2)
    listed = (await door.send("GET", "/admin/usage/customers")).json
    assert listed["next_page_token"] is None
    found = {one.pop("customer"): one for one in listed["customers"]}
    assert found["acme"] == {
        "tokens": 1,
        "deleted_tokens": 1,
        "requests": 2,
        "prompt_tokens": 20,
        "completion_tokens": 3,
        "total_tokens": 23,
        "amount_spent": 3.0,
        "held": 0.0,
        "currency": "USD",
    }
    assert {name: one["amount_spent"] for name, one in found.items()} == {"acme": 3.0, "": 5.0, "Zoë": 3.0}
    names, page = [], ""
    while True:
        answer = (await door.send("GET", f"/admin/usage/customers?page_size=1&page_token={page}")).json
        names += [one["customer"] for one in answer["customers"]]
        page = answer["next_page_token"]
        if page is None:
            break
    assert names == list(found)
    stub = usage_pb2_grpc.UsageServiceStub(call("operator").channel)
    assert len(stub.ListCustomers(usage_pb2.ListCustomersRequest()).customers) == 3


def test_the_audit_tells_what_a_limit_was(tokens, call):
    made = create(tokens, requests_per_minute=5).token
    update(tokens, made.id, "requests_per_minute", requests_per_minute=6)
    top_up_fails = reason(top_up, tokens, made.id, DOLLAR)
    assert top_up_fails == "FAILED_PRECONDITION"
    changed, created = audited(call, f"token:{made.id}")
    assert json.loads(created.after_json)["requests_per_minute"] == 5
    before, after = json.loads(changed.before_json), json.loads(changed.after_json)
    assert (before["requests_per_minute"], after["requests_per_minute"]) == (5, 6)
