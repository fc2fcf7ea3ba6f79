"""The HTTP door of admin: a real aiohttp server before a real admin server, both on loopback."""

from __future__ import annotations

import io
import json
import uuid

import pytest

from gateway.storage import models
from gateway.storage.administrators import bootstrap
from tests.admin.conftest import PASSWORD

TOKEN_KEYS = {
    "id",
    "name",
    "display_hint",
    "weak",
    "allowed_models",
    "enabled",
    "status",
    "expires_at",
    "customer",
    "remark",
    "created_at",
    "last_used_at",
    "max_amount",
    "amount_spent",
    "held",
    "remaining",
    "currency",
    "budget_mode",
    "budget_period",
    "period_spent",
    "resets_at",
    "requests_per_minute",
    "tokens_per_minute",
    "max_parallel_requests",
    "open_calls",
    "allowed_ips",
    "previous_valid_until",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "request_count",
    "version",
}


async def make(door, body="{}"):
    answer = await door.send("POST", "/admin/tokens", body)
    assert answer.status == 201, answer.text
    return answer.json


# -- tokens -------------------------------------------------------------------------------------------------------------------


async def test_what_people_type_after_a_login_makes_tokens(door):
    """`curl -d` sends a form type, and no header of its own."""
    for body in (
        '{"max_amount": 50}',
        '{"token": "new-token"}',
        '{"expires_at": "2027-01-31"}',
        '{"max_amount": 100.0, "allowed_models": ["gpt-4", "claude-3"]}',
        "{}",
    ):
        made = await make(door, body)
        assert made["token"]
        assert set(made) == TOKEN_KEYS | {"token", "warnings"}
    assert made["name"] == f"token-{made['id']}"
    listed = (await door.send("GET", "/admin/tokens")).json
    assert [token["id"] for token in listed["tokens"]] == [5, 4, 3, 2, 1]
    assert listed["next_page_token"] is None
    plain, models_and_amount, day, chosen, amount = listed["tokens"]
    assert set(plain) == TOKEN_KEYS
    assert (plain["max_amount"], plain["remaining"], plain["expires_at"], plain["last_used_at"]) == (None, None, None, None)
    assert (models_and_amount["max_amount"], models_and_amount["allowed_models"]) == (100.0, ["gpt-4", "claude-3"])
    assert day["expires_at"] == "2027-01-31T23:59:59.999999Z"
    assert (chosen["weak"], chosen["display_hint"]) == (True, "")
    assert (amount["max_amount"], amount["remaining"], amount["currency"]) == (50.0, 50.0, "USD")
    assert "new-token" not in json.dumps(listed)


async def test_models_may_be_written_as_a_text(door):
    made = await make(door, '{"allowed_models": "gpt-4, claude-3,"}')
    assert made["allowed_models"] == ["gpt-4", "claude-3"]


async def test_a_day_that_has_passed_is_taken_with_a_warning(door):
    made = await make(door, '{"expires_at": "2020-01-31"}')
    assert made["status"] == "expired"
    assert "has passed" in made["warnings"][0]


async def test_one_token_is_read_changed_and_deleted(door):
    made = await make(door, '{"name": "app", "max_amount": 5, "customer": "acme"}')
    path = f"/admin/tokens/{made['id']}"
    read = (await door.send("GET", path)).json
    assert read == {name: made[name] for name in TOKEN_KEYS}
    changed = await door.send("PATCH", path, '{"max_amount": null, "name": "worker"}')
    assert (changed.status, changed.json["max_amount"], changed.json["name"]) == (200, None, "worker")
    assert changed.json["customer"] == "acme"
    assert changed.json["warnings"] == []
    stale = await door.send("PATCH", path, {"name": "late", "version": made["version"]})
    assert (stale.status, stale.code) == (409, "version_mismatch")
    assert (await door.send("DELETE", path)).status == 200
    assert (await door.send("DELETE", path)).status == 200
    gone = await door.send("GET", path)
    assert (gone.status, gone.code) == (404, "not_found")


async def test_the_switch_is_set_or_flipped(door):
    path = f"/admin/tokens/{(await make(door))['id']}/toggle"
    assert (await door.send("POST", path)).json["status"] == "disabled"
    assert (await door.send("POST", path, "")).json["status"] == "active"
    assert (await door.send("POST", path, "{}")).json["enabled"] is False
    assert (await door.send("POST", path, '{"enabled": false}')).json["enabled"] is False
    assert (await door.send("POST", path, '{"enabled": true}')).json["enabled"] is True
    assert (await door.send("POST", path, '{"enabled": "yes"}')).status == 400


async def test_a_new_secret_is_told_once_and_a_top_up_counts_once(door):
    made = await make(door, '{"max_amount": 0.1}')
    path = f"/admin/tokens/{made['id']}"
    turned = (await door.send("POST", f"{path}/rotate")).json
    assert turned["token"].startswith("sk-gz-")
    assert turned["token"] != made["token"]
    body = {"amount": 0.2, "request_id": str(uuid.uuid4())}
    for _ in range(2):
        assert (await door.send("POST", f"{path}/topup", body)).json["max_amount"] == 0.3
    bare = f"/admin/tokens/{(await make(door))['id']}/topup"
    refused = await door.send("POST", bare, '{"amount": 5}')
    assert (refused.status, refused.code) == (409, "failed_precondition")


async def test_a_repeated_creation_tells_no_secret(door):
    body = json.dumps({"name": "app", "request_id": str(uuid.uuid4())})
    first = await make(door, body)
    again = await door.send("POST", "/admin/tokens", body)
    assert (again.status, again.json["id"], again.json["token"]) == (200, first["id"], None)
    taken = await door.send("POST", "/admin/tokens", body.replace("app", "other"))
    assert (taken.status, taken.code) == (409, "already_exists")


async def test_a_secret_that_is_taken_is_refused_without_saying_more(door):
    made = await make(door, '{"token": "my-test-token-12345"}')
    refused = await door.send("POST", "/admin/tokens", '{"token": "my-test-token-12345"}')
    assert refused.status == 409
    assert str(made["id"]) not in refused.json["error"]["message"]
    assert "my-test-token" not in refused.text


WRONG_FIELDS = [
    ('{"max_amout": 5}', "max_amout"),
    ('{"amount_spent": 0}', "amount_spent"),
    ('{"id": 7}', "id"),
    ('{"created_at": "2020-01-01"}', "created_at"),
    ('{"token_hash": "x"}', "token_hash"),
    ('{"max_amount": -1}', "max_amount"),
    ('{"max_amount": 1e30}', "max_amount"),
    ('{"max_amount": "50"}', "max_amount"),
    ('{"max_amount": true}', "max_amount"),
    ('{"max_amount": [1]}', "max_amount"),
    ('{"max_amount": 0.0000000001}', "max_amount"),
    ('{"name": 5}', "name"),
    ('{"name": ["x"]}', "name"),
    ('{"allowed_models": 5}', "allowed_models"),
    ('{"allowed_models": [5]}', "allowed_models"),
    ('{"allowed_models": {"a": 1}}', "allowed_models"),
    ('{"expires_at": 5}', "expires_at"),
    ('{"expires_at": "next Tuesday"}', "expires_at"),
    ('{"expires_at": "9999-99-99"}', "expires_at"),
    ('{"enabled": 1}', "enabled"),
    ('{"budget_mode": "lax"}', "budget_mode"),
    ('{"token": 5}', "token"),
    ('{"token": ""}', "token"),
    ('{"version": 1}', "version"),
    ('{"__proto__": {}}', "__proto__"),
]


async def test_a_wrong_field_is_refused_by_name_with_what_it_takes(door, db):
    for body, param in WRONG_FIELDS:
        answer = await door.send("POST", "/admin/tokens", body)
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert answer.json["error"]["param"] == param
        assert param in answer.json["error"]["message"]
        assert not models.ClientToken.select().exists(db)


async def test_a_misspelt_field_is_answered_with_the_one_that_was_meant(door):
    answer = await door.send("POST", "/admin/tokens", '{"max_amout": 5}')
    assert "did you mean max_amount?" in answer.json["error"]["message"]


UNREADABLE = [
    '{"max_amount": NaN}',
    '{"max_amount": Infinity}',
    '{"max_amount": 1e999}',
    '{"name": "a", "name": "b"}',
    "[]",
    "7",
    "{",
    "null",
    '{"a": 1} x',
    b"\xff\xfe{}",
    b'{"name": "\xff"}',
    '{"name": "\\ud800"}',
    "{" * 10_000,
    '{"max_amount": ' + "9" * 5000 + "}",
    '{"name": "' + "x" * 10_240 + '"}',
    '{"token": "short"}',
    '{"token": "sk-gz-not-a-generated-one"}',
    '{"token": "with a space"}',
    '{"request_id": "7"}',
]


async def test_a_body_that_cannot_be_read_is_refused(door, db):
    for body in UNREADABLE:
        answer = await door.send("POST", "/admin/tokens", body)
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert not models.ClientToken.select().exists(db)


async def pieces():
    for _ in range(17):
        yield b" " * (1 << 16)


async def test_an_over_large_or_compressed_body_is_refused(door):
    assert (await door.send("POST", "/admin/tokens", io.BytesIO(b" " * (1 << 20) + b"{}"))).status == 413
    assert (await door.send("POST", "/admin/tokens", pieces())).status == 413
    assert (await door.send("POST", "/admin/tokens", b"{}", headers={"Content-Encoding": "gzip"})).status == 415


NO_CHANGES = ['{"amount_spent": 0}', '{"id": 9}', '{"created_at": null}', '{"token": "my-own-secret"}', "{}", ""]


async def test_a_change_of_what_cannot_be_changed_is_refused(door):
    for body in NO_CHANGES:
        made = await make(door)
        answer = await door.send("PATCH", f"/admin/tokens/{made['id']}", body)
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert (await door.send("GET", f"/admin/tokens/{made['id']}")).json["version"] == made["version"]


NO_AMOUNTS = ['{"amount": 0}', '{"amount": -5}', '{"amount": "5"}', '{"amount": null}', "{}", '{"amount": 1e30}']


async def test_a_top_up_takes_a_number_above_nothing(door):
    for body in NO_AMOUNTS:
        made = await make(door, '{"max_amount": 1}')
        answer = await door.send("POST", f"/admin/tokens/{made['id']}/topup", body)
        assert (answer.status, answer.json["error"]["param"]) == (400, "amount")


async def test_lists_come_in_pages_and_take_only_known_parameters(door):
    for number in range(5):
        await make(door, {"name": f"app-{number}", "customer": "acme" if number % 2 else ""})
    names, token = [], ""
    while True:
        page = (await door.send("GET", f"/admin/tokens?page_size=2&page_token={token}")).json
        names += [found["name"] for found in page["tokens"]]
        if not (token := page["next_page_token"]):
            break
    assert names == [f"app-{number}" for number in (4, 3, 2, 1, 0)]
    assert len((await door.send("GET", "/admin/tokens?page_size=1000000000")).json["tokens"]) == 5
    assert len((await door.send("GET", "/admin/tokens?customer=acme&name=APP")).json["tokens"]) == 2
    for query in (
        "page_sise=2",
        "page_size=-1",
        "page_size=x",
        "page_size=1&page_size=2",
        "page_token=garbage",
        "page_size=" + "9" * 99,
    ):
        assert (await door.send("GET", f"/admin/tokens?{query}")).status == 400, query


# -- routes -------------------------------------------------------------------------------------------------------------------


NO_ROUTES = [
    "/admin",
    "/admin/",
    "/admin/tokens/",
    "/admin//tokens",
    "/admin/tokens/*",
    "/admin/tokens/1/",
    "/admin/tokens/1/delete",
    "/auth",
    "/auth/x",
    "/admin/logs",
    "/admin/logs/*",
    "/Admin/tokens",
    "/admin/tokens;x",
    "/admin/tokens%2f1",
    "/%61dmin/tokens",
    "/admin/logs/requests/",
]


async def test_what_is_no_route_is_told_so(door):
    for path in NO_ROUTES:
        answer = await door.send("GET", path)
        assert (answer.status, answer.code) == (404, "route_not_found")


NO_IDS = [
    "/admin/tokens/abc",
    "/admin/tokens/-1",
    "/admin/tokens/1e3",
    "/admin/tokens/" + "9" * 30,
    "/admin/tokens/%31",
    "/admin/tokens/%D9%A3",
]


async def test_an_id_that_can_be_none_is_not_found(door):
    for path in NO_IDS:
        answer = await door.send("GET", path)
        assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/admin/tokens", "GET, POST"),
        ("POST", "/admin/tokens/1", "GET, PATCH, DELETE"),
        ("GET", "/auth/login", "POST"),
        ("GET", "/admin/tokens/1/toggle", "POST"),
    ],
)
async def test_another_method_is_told_which_there_are(door, method, path, allow):
    answer = await door.send(method, path)
    assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "method_not_allowed", allow)


async def test_every_answer_is_private_and_carries_its_id(door):
    for path in ("/admin/tokens", "/admin/tokens/99", "/admin/nothing"):
        answer = await door.send("GET", path)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["x-request-id"] == answer.headers["request-id"]
        assert answer.headers["Content-Type"] == "application/json"
        assert set(answer.json.get("error", {"message": 0, "type": 0, "param": 0, "code": 0})) == {
            "message",
            "type",
            "param",
            "code",
        }


# -- audit and sessions -------------------------------------------------------------------------------------------------------


async def test_the_audit_log_tells_who_did_what_from_where(door):
    made = await make(door, '{"name": "app"}')
    await door.send("PATCH", f"/admin/tokens/{made['id']}", '{"name": "worker"}')
    answer = await door.send("GET", f"/admin/audit?subject=token:{made['id']}&action=token.update")
    (record,) = answer.json["records"]
    assert (record["actor"], record["client_ip"], record["action"]) == ("admin:admin", "127.0.0.1", "token.update")
    assert (record["before"]["name"], record["after"]["name"]) == ("app", "worker")
    assert set(record) == {"id", "at", "actor", "action", "subject", "before", "after", "client_ip", "request_id"}
    assert len((await door.send("GET", "/admin/audit?page_size=1")).json["records"]) == 1


async def test_sessions_are_listed_and_revoked(door):
    other = (await door.login(PASSWORD)).json["session_token"]
    own = (await door.send("GET", "/auth/session")).json["id"]
    listed = (await door.send("GET", "/admin/sessions")).json["sessions"]
    assert len(listed) == 2
    (theirs,) = [session["id"] for session in listed if session["id"] != own]
    assert (await door.send("DELETE", f"/admin/sessions/{theirs}")).status == 200
    assert (await door.send("GET", "/auth/session", bearer=other)).status == 401
    assert (await door.send("DELETE", f"/admin/sessions/{uuid.uuid4()}")).status == 404


async def test_a_one_time_password_leads_to_a_new_one(door, db, clock):
    models.Session.delete().execute(db)
    models.Administrator.delete().execute(db)
    one_time = bootstrap(db, None, clock=clock)
    door.secret = (await door.login(one_time)).json["session_token"]
    refused = await door.send("GET", "/admin/tokens")
    assert (refused.status, refused.code) == (403, "permission_denied")
    assert "POST /auth/password" in refused.json["error"]["message"]
    weak = await door.send("POST", "/auth/password", {"old_password": one_time, "new_password": "password1"})
    assert (weak.status, weak.json["error"]["param"]) == (400, "new_password")
    assert (await door.send("POST", "/auth/password", {"old_password": one_time, "new_password": PASSWORD})).status == 200
    assert (await door.send("GET", "/admin/tokens")).status == 200
    assert (await door.login(one_time)).status == 401
