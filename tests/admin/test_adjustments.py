"""Corrections of what a token has spent: over gRPC and HTTP, on both databases, with the books proven after each."""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from gateway.rpc.status import from_status
from gateway.storage.reconcile import reconcile
from gateway.stubs.admin.v1 import adjustments_pb2 as pb
from gateway.stubs.admin.v1.adjustments_pb2_grpc import AdjustmentServiceStub
from tests.admin.calls import DOLLAR, audited, create, delete, get, reason


@pytest.fixture
def adjustments(call):
    return AdjustmentServiceStub(call("operator").channel)


def adjust(adjustments, token_id, amount, why="a goodwill credit", request_id=""):
    request = pb.CreateAdjustmentRequest(token_id=token_id, amount_nanos=amount, reason=why, request_id=request_id)
    return adjustments.CreateAdjustment(request)


def fault(call, *arguments, **named):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **named)
    return from_status(caught.value)


def test_a_correction_changes_what_is_spent_and_is_told_in_the_audit(tokens, adjustments, call, db):
    token = create(tokens, max_amount_nanos=5 * DOLLAR).token
    charged = adjust(adjustments, token.id, 3 * DOLLAR, "a call that was made elsewhere")
    assert charged.amount_spent_nanos == 3 * DOLLAR
    given_back = adjust(adjustments, token.id, -DOLLAR // 2, "half a dollar too much")
    assert given_back.amount_spent_nanos == 5 * DOLLAR // 2
    after = get(tokens, token.id)
    assert (after.amount_spent_nanos, after.remaining_nanos) == (5 * DOLLAR // 2, 5 * DOLLAR // 2)
    assert reconcile(db) == []
    record, first, _ = audited(call, f"token:{token.id}")
    assert (record.action, record.actor, first.action) == ("token.adjust", "operator", "token.adjust")
    assert json.loads(record.before_json) == {"amount_spent_nanos": 3 * DOLLAR}
    assert json.loads(record.after_json) == {
        "adjustment_id": given_back.adjustment.id,
        "amount_nanos": -DOLLAR // 2,
        "reason": "half a dollar too much",
        "amount_spent_nanos": 5 * DOLLAR // 2,
    }


def test_the_same_request_id_books_once_and_another_use_of_it_is_refused(tokens, adjustments, db):
    token = create(tokens).token
    request_id = str(uuid.uuid4())
    first = adjust(adjustments, token.id, DOLLAR, request_id=request_id)
    adjust(adjustments, token.id, DOLLAR)
    again = adjust(adjustments, token.id, DOLLAR, request_id=request_id)
    assert again.adjustment == first.adjustment
    assert again.amount_spent_nanos == 2 * DOLLAR
    assert reason(adjust, adjustments, token.id, 2 * DOLLAR, request_id=request_id) == "ALREADY_EXISTS"
    assert reason(adjust, adjustments, token.id, DOLLAR, request_id="no uuid") == "INVALID_ARGUMENT"
    assert get(tokens, token.id).amount_spent_nanos == 2 * DOLLAR
    assert reconcile(db) == []


def test_ten_at_once_with_one_id_book_once(tokens, adjustments, db):
    token = create(tokens).token
    request_id = str(uuid.uuid4())
    with ThreadPoolExecutor(10) as pool:
        booked = list(pool.map(lambda _: adjust(adjustments, token.id, DOLLAR, request_id=request_id), range(10)))
    assert len({answer.adjustment.id for answer in booked}) == 1
    assert get(tokens, token.id).amount_spent_nanos == DOLLAR
    assert reconcile(db) == []


def test_no_more_is_given_back_than_was_spent(tokens, adjustments, db):
    token = create(tokens).token
    adjust(adjustments, token.id, DOLLAR)
    refused = fault(adjust, adjustments, token.id, -DOLLAR - 1)
    assert refused.reason == "FAILED_PRECONDITION"
    assert refused.message == f"token {token.id} has spent 1: 1.000000001 is more than can be given back"
    assert adjust(adjustments, token.id, -DOLLAR).amount_spent_nanos == 0
    assert reconcile(db) == []


@pytest.mark.parametrize(
    ("amount", "why"),
    [(0, "nothing"), (DOLLAR, ""), (DOLLAR, "  "), (DOLLAR, "two\nlines"), (DOLLAR, "x" * 501), (-(2**63), "x")],
)
def test_a_correction_needs_an_amount_and_a_reason(tokens, adjustments, amount, why):
    token = create(tokens).token
    assert reason(adjust, adjustments, token.id, amount, why) == "INVALID_ARGUMENT"
    assert list(adjustments.ListAdjustments(pb.ListAdjustmentsRequest(token_id=token.id)).adjustments) == []


def test_the_books_of_a_deleted_token_can_be_corrected_and_those_of_no_token_cannot(tokens, adjustments, db):
    token = create(tokens).token
    delete(tokens, token.id)
    assert adjust(adjustments, token.id, DOLLAR).amount_spent_nanos == DOLLAR
    assert reason(adjust, adjustments, token.id + 1, DOLLAR) == "NOT_FOUND"
    assert reason(adjustments.ListAdjustments, pb.ListAdjustmentsRequest(token_id=token.id + 1)) == "NOT_FOUND"
    assert reconcile(db) == []


def test_a_token_written_by_hand_is_made_a_real_one_first(adjustments, db):
    with db.write():
        db.run("INSERT INTO client_tokens (name, token, amount_spent) VALUES ('hand', 'written-by-hand', 25.5)")
    assert adjust(adjustments, 1, -DOLLAR).amount_spent_nanos == 49 * DOLLAR // 2
    assert reconcile(db) == []


def test_a_correction_counts_in_the_budget_period_that_it_is_booked_in(tokens, adjustments, db, clock):
    token = create(tokens, max_amount_nanos=5 * DOLLAR).token
    with db.write():
        db.run("UPDATE client_tokens SET budget_period = 'daily'")
    adjust(adjustments, token.id, DOLLAR)
    clock.move(days=1)
    adjust(adjustments, token.id, 2 * DOLLAR)
    assert db.query("SELECT period_spent_nanos, total_spent_nanos FROM client_tokens") == [(2 * DOLLAR, 3 * DOLLAR)]
    assert reconcile(db) == []


def test_corrections_are_listed_in_pages_the_newest_first(tokens, adjustments):
    token, other = create(tokens).token, create(tokens).token
    made = [adjust(adjustments, token.id, number + 1).adjustment for number in range(5)]
    adjust(adjustments, other.id, DOLLAR)
    seen, page = [], ""
    while True:
        answer = adjustments.ListAdjustments(pb.ListAdjustmentsRequest(token_id=token.id, page_size=2, page_token=page))
        assert len(answer.adjustments) <= 2
        seen += answer.adjustments
        page = answer.next_page_token
        if not page:
            break
    assert seen == made[::-1]


async def test_http_takes_and_shows_currency_units(door, db):
    made = (await door.send("POST", "/admin/tokens", {"max_amount": 10})).json
    path = f"/admin/tokens/{made['id']}/adjustments"
    booked = await door.send("POST", path, '{"amount": 2.25, "reason": "made elsewhere"}')
    assert booked.status == 201
    assert (booked.json["amount"], booked.json["amount_spent"], booked.json["actor"]) == (2.25, 2.25, "admin:admin")
    assert (await door.send("POST", path, '{"amount": -1.5, "reason": "too much"}')).json["amount_spent"] == 0.75
    listed = (await door.send("GET", path)).json
    assert [one["amount"] for one in listed["adjustments"]] == [-1.5, 2.25]
    assert (await door.send("GET", f"/admin/tokens/{made['id']}")).json["amount_spent"] == 0.75
    assert reconcile(db) == []


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ('{"reason": "x"}', 400, "amount"),
        ('{"amount": "1", "reason": "x"}', 400, "amount"),
        ('{"amount": true, "reason": "x"}', 400, "amount"),
        ('{"amount": 0.0000000001, "reason": "x"}', 400, "amount"),
        ('{"amount": 1}', 400, "reason"),
        ('{"amount": 1, "reasons": "x"}', 400, "reason"),
        ('{"amount": -1, "reason": "x"}', 409, "given back"),
    ],
)
async def test_http_says_what_is_wrong(door, body, status, named):
    made = (await door.send("POST", "/admin/tokens", {})).json
    answer = await door.send("POST", f"/admin/tokens/{made['id']}/adjustments", body)
    assert answer.status == status, answer.text
    assert named in answer.json["error"]["message"]


async def test_corrections_need_a_session(door):
    assert (await door.send("POST", "/admin/tokens/1/adjustments", "{}", bearer="nobody")).status == 401
    assert (await door.send("GET", "/admin/tokens/1/adjustments", bearer="nobody")).status == 401
    assert (await door.send("GET", "/admin/tokens/77/adjustments")).status == 404
    assert (await door.send("PUT", "/admin/tokens/1/adjustments")).status == 405
