"""Lists of client tokens, what the audit log tells of them, and tokens that somebody wrote into the table."""

from __future__ import annotations

import json

import pytest

from gateway import tokens as secrets
from gateway.storage import models
from gateway.stubs.admin.v1 import audit_pb2, tokens_pb2
from tests.admin.calls import DOLLAR, audited, create, delete, get, hash_in, reason, rotate, top_up, update
from tests.admin.conftest import TOKEN_KEY

# -- lists --------------------------------------------------------------------------------------------------------------------


def listed(tokens, **query):
    found, page_token = [], ""
    while True:
        page = tokens.ListTokens(tokens_pb2.ListTokensRequest(page_token=page_token, **query))
        found += [token.name for token in page.tokens]
        if not (page_token := page.next_page_token):
            return found


def test_pages_hold_every_token_once_the_newest_first(tokens):
    names = [f"app-{number}" for number in range(7)]
    for name in names:
        create(tokens, name=name)
    for size in (1, 3, 7, 100):
        assert listed(tokens, page_size=size) == names[::-1]


def test_a_list_is_filtered_by_customer_and_by_part_of_the_name(tokens):
    for name, customer in (("Web-App", "acme"), ("worker", "acme"), ("100%_real", "other"), ("100-really", "")):
        create(tokens, name=name, customer=customer)
    assert listed(tokens, customer="acme") == ["worker", "Web-App"]
    assert listed(tokens, name_contains="web-a") == ["Web-App"]
    assert listed(tokens, name_contains="w", customer="acme", page_size=1) == ["worker", "Web-App"]
    assert listed(tokens, name_contains="%_") == ["100%_real"]
    assert listed(tokens, name_contains="_") == ["100%_real"]
    assert listed(tokens, name_contains="\\") == []


@pytest.mark.parametrize("page_token", ["garbage", "WyJhdWRpdCIsN10", "' OR 1=1 --", "x" * 10_000])
def test_a_page_token_that_is_none_is_refused(tokens, page_token):
    assert reason(tokens.ListTokens, tokens_pb2.ListTokensRequest(page_token=page_token)) == "INVALID_ARGUMENT"


def test_a_page_ends_before_a_message_is_too_large(tokens):
    wide = ["x" * 240 + f"{number:04}" for number in range(1000)]
    for _ in range(15):
        create(tokens, allowed_models=wide)
    assert listed(tokens, page_size=1000) == [f"token-{number}" for number in range(15, 0, -1)]


def test_a_filter_that_can_match_nothing_is_refused(tokens, call):
    for query in ({"name_contains": "%" * 10_000}, {"customer": "x" * 10_000}):
        assert reason(tokens.ListTokens, tokens_pb2.ListTokensRequest(**query)) == "INVALID_ARGUMENT"
    audit = call("operator").audit
    assert reason(audit.ListAuditRecords, audit_pb2.ListAuditRecordsRequest(subject="x" * 10_000)) == "INVALID_ARGUMENT"


PAYLOADS = [
    "' OR '1'='1", "'; DROP TABLE client_tokens; --", '" OR 1=1 --', "1); DELETE FROM audit; --",
    "' UNION SELECT token_hash FROM client_tokens --",
    "%", "_", "%%%", "\\", "\\%", "a' AND randomblob(100000000) --", "${jndi:ldap://x}", "{{7*7}}", "x'--", "\u2028", "%" * 150,
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_sql_in_a_field_is_text(tokens, call, payload):
    create(tokens, name="app", customer="acme")
    assert listed(tokens, name_contains=payload) in ([], ["app"] if payload in "app" else [])
    assert listed(tokens, customer=payload) == []
    assert audited(call, payload) == []
    if payload.isprintable():
        made = create(tokens, name=payload, customer=payload, remark=payload).token
        assert (made.name, made.customer, made.remark) == (payload, payload, payload)
        assert listed(tokens, name_contains=payload) == [payload]


# -- the audit log ------------------------------------------------------------------------------------------------------------


def test_each_change_is_audited_once_with_before_and_after_and_no_secret(tokens, call, db):
    made = create(tokens, name="app", max_amount_nanos=DOLLAR, secret="my-chosen-secret")
    token_id = made.token.id
    update(tokens, token_id, "name", name="worker")
    tokens.SetTokenEnabled(tokens_pb2.SetTokenEnabledRequest(id=token_id, enabled=False))
    tokens.SetTokenEnabled(tokens_pb2.SetTokenEnabledRequest(id=token_id, enabled=False))
    top_up(tokens, token_id, DOLLAR)
    turned = rotate(tokens, token_id)
    delete(tokens, token_id)
    records = audited(call, f"token:{token_id}")[::-1]
    assert [record.action for record in records] == [
        "token.create", "token.update", "token.disable", "token.top_up", "token.rotate", "token.delete",
    ]  # fmt: skip
    assert {record.actor for record in records} == {"operator"}
    assert {record.client_ip for record in records} == {"127.0.0.1"}
    before, after = json.loads(records[1].before_json), json.loads(records[1].after_json)
    assert (before["name"], after["name"]) == ("app", "worker")
    assert set(before) == {"name", "version"}
    assert json.loads(records[3].after_json)["max_amount_nanos"] == 2 * DOLLAR
    everything = str(records)
    assert not [secret for secret in (made.secret, turned.secret, hash_in(db, token_id) or "-none-") if secret in everything]


def test_a_refused_change_is_not_audited(tokens, call):
    made = create(tokens).token
    reason(top_up, tokens, made.id, DOLLAR)
    assert len(audited(call, f"token:{made.id}")) == 1


def test_the_audit_log_comes_in_pages_by_action(tokens, call):
    for _ in range(5):
        create(tokens)
    audit, ids, page_token = call("operator").audit, [], ""
    while True:
        request = audit_pb2.ListAuditRecordsRequest(page_size=2, page_token=page_token, action="token.create")
        page = audit.ListAuditRecords(request)
        ids += [record.subject for record in page.records]
        if not (page_token := page.next_page_token):
            break
    assert ids == [f"token:{number}" for number in (5, 4, 3, 2, 1)]


# -- rows written by hand -----------------------------------------------------------------------------------------------------


def insert(db, columns, *values):
    with db.write():
        db.run(f"INSERT INTO client_tokens ({columns}) VALUES ({', '.join('?' * len(values))})", values)


def test_a_hand_written_token_lists_like_any_other_and_its_plain_text_goes(tokens, db):
    insert(db, "name, token", "my-first-token", "my-token")
    columns = "name, token, allowed_models, max_amount, enabled, expires_at, amount_spent"
    insert(db, columns, "full", "my-token-2", "gpt-4,claude-3", 100.0, 1, "2027-12-31", 25.5)
    full, first = tokens.ListTokens(tokens_pb2.ListTokensRequest()).tokens
    assert (first.name, first.weak, first.status) == ("my-first-token", True, tokens_pb2.TOKEN_STATUS_ACTIVE)
    assert list(full.allowed_models) == ["gpt-4", "claude-3"]
    assert (full.max_amount_nanos, full.amount_spent_nanos) == (100 * DOLLAR, 25 * DOLLAR + DOLLAR // 2)
    assert full.expires_at.ToJsonString() == "2027-12-31T23:59:59.999999Z"
    assert [row.token for row in models.ClientToken.select().execute(db)] == [None, None]
    assert hash_in(db, first.id) == secrets.hash_secret(TOKEN_KEY, "my-token").hex()


def test_a_hand_written_amount_counts_before_the_next_change(tokens, db):
    made = create(tokens, max_amount_nanos=DOLLAR).token
    with db.write():
        db.run("UPDATE client_tokens SET max_amount = 7.5 WHERE id = ?", (made.id,))
    assert get(tokens, made.id).max_amount_nanos == 7_500_000_000
    with db.write():
        db.run("UPDATE client_tokens SET max_amount = 3 WHERE id = ?", (made.id,))
    assert top_up(tokens, made.id, DOLLAR).max_amount_nanos == 4 * DOLLAR


def test_a_secret_that_a_hand_written_row_has_cannot_be_chosen(tokens, db):
    insert(db, "name, token", "by-hand", "taken-by-hand")
    assert reason(create, tokens, secret="taken-by-hand") == "ALREADY_EXISTS"


def test_an_unreadable_hand_written_row_lists_as_switched_off(tokens, db):
    insert(db, "name, token, expires_at", "odd", "my-odd-token", "next Tuesday")
    (odd,) = tokens.ListTokens(tokens_pb2.ListTokensRequest()).tokens
    assert odd.status == tokens_pb2.TOKEN_STATUS_DISABLED
