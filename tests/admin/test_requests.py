"""The request log over gRPC, against a real server and database."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from gateway.clock import to_text
from gateway.ids import uuid7
from gateway.rpc.status import from_status
from gateway.storage import models
from gateway.storage.request_log import RequestFilter, RequestLog
from gateway.stubs.admin.v1 import requests_pb2
from services.admin.requests import MAX_TAILS
from services.admin.wire import moment_to_proto
from tests.admin.calls import create, delete

START = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def log(call):
    return call("operator").requests


def add(db, token_id, *, at=START, request_id=None, **values):
    """One call that was admitted at this moment; gives its id."""
    request_id = request_id or uuid7(int(at.timestamp() * 1000))
    row = {"state": "settled", "request_model": "gpt-4", "settled_at": to_text(at + timedelta(seconds=1))} | values
    models.Request.insert(request_id=request_id, token_id=token_id, identity="proxy", admitted_at=to_text(at), **row).execute(
        db
    )
    return request_id


def listed(log, page_size=3, since=None, **wanted):
    """The ids of all calls that pass, page by page."""
    until = wanted.pop("until", None)
    chosen = requests_pb2.RequestFilter(**wanted)
    if since is not None:
        getattr(chosen, "from").CopyFrom(moment_to_proto(since))
    if until is not None:
        chosen.until.CopyFrom(moment_to_proto(until))
    found, token = [], ""
    while True:
        request = requests_pb2.ListRequestsRequest(filter=chosen, page_size=page_size, page_token=token)
        page = log.ListRequests(request)
        assert len(page.requests) <= page_size
        found += [call.request_id for call in page.requests]
        if not (token := page.next_page_token):
            return found


def reason(call, *args):
    with pytest.raises(grpc.RpcError) as caught:
        call(*args)
    return from_status(caught.value).reason


def test_pages_hold_every_call_once_the_newest_first(tokens, log, db):
    token = create(tokens).token.id
    ids = [add(db, token, at=START + timedelta(minutes=minute)) for minute in range(10)]
    assert listed(log) == ids[::-1]
    assert listed(log, page_size=100) == ids[::-1]


def test_a_call_that_comes_in_meanwhile_shifts_no_page(tokens, log, db):
    token = create(tokens).token.id
    ids = [add(db, token, at=START + timedelta(minutes=minute)) for minute in range(4)]
    first = log.ListRequests(requests_pb2.ListRequestsRequest(page_size=2))
    add(db, token, at=START + timedelta(hours=1))
    second = log.ListRequests(requests_pb2.ListRequestsRequest(page_size=2, page_token=first.next_page_token))
    assert [call.request_id for call in second.requests] == [ids[1], ids[0]]


def test_a_record_tells_the_whole_call_and_names_a_deleted_token(tokens, log, db):
    token = create(tokens, name="app").token.id
    request_id = add(
        db, token, endpoint="/v1/chat/completions", dialect="openai", stream=1, response_model="gpt-4-0613", provider="openai",
        held_nanos=9, cost_nanos=7, price_id=3, input_tokens=11, cached_input_tokens=2, output_tokens=5, reasoning_tokens=1,
        usage_source="provider", status=200, ttft_ms=12, duration_ms=345, client_ip="203.0.113.9", user_agent="pytest",
    )  # fmt: skip
    delete(tokens, token)
    call = log.GetRequest(requests_pb2.GetRequestRequest(request_id=request_id)).request
    assert (call.token_id, call.token_name, call.state, call.stream) == (token, "app", "settled", True)
    assert (call.request_model, call.response_model, call.provider) == ("gpt-4", "gpt-4-0613", "openai")
    assert (call.held_nanos, call.cost_nanos, call.price_id, call.usage_source) == (9, 7, 3, "provider")
    assert (call.input_tokens, call.cached_input_tokens, call.output_tokens, call.reasoning_tokens) == (11, 2, 5, 1)
    assert (call.status, call.ttft_ms, call.duration_ms, call.client_ip, call.user_agent) == (
        200,
        12,
        345,
        "203.0.113.9",
        "pytest",
    )
    assert call.admitted_at == moment_to_proto(START)
    assert log.ListRequests(requests_pb2.ListRequestsRequest()).requests == [call]


def test_an_unknown_call_is_not_found(log, admin):
    assert reason(log.GetRequest, requests_pb2.GetRequestRequest(request_id=uuid7())) == "NOT_FOUND"
    assert reason(log.GetRequest, requests_pb2.GetRequestRequest(request_id="' OR 1=1 --")) == "NOT_FOUND"


def test_filters_pass_what_they_name(tokens, log, db):
    first, second = create(tokens, name="app").token.id, create(tokens, name="app").token.id
    third = create(tokens, name="other").token.id
    ids = []
    for number, (token, model, state) in enumerate(
        [
            (first, "gpt-4", "settled"),
            (second, "gpt-4", "released"),
            (third, "gpt-4", "settled"),
            (first, "demo", "admitted"),
            (second, "demo", "expired"),
            (third, "demo", "released"),
        ]
    ):
        settled_at = None if state == "admitted" else to_text(START)
        at = START + timedelta(minutes=number)
        ids.append(add(db, token, at=at, request_model=model, state=state, settled_at=settled_at))

    def numbers(**wanted):
        return [ids.index(found) for found in listed(log, **wanted)]

    assert numbers(token_id=first) == [3, 0]
    assert numbers(token_name="app") == [4, 3, 1, 0]
    assert numbers(token_name="app", page_size=1) == [4, 3, 1, 0]
    assert numbers(token_name="app", token_id=second) == [4, 1]
    assert numbers(token_name="other", token_id=second) == []
    assert numbers(token_name="nobody") == []
    assert numbers(model="demo") == [5, 4, 3]
    assert numbers(state="released") == [5, 1]
    assert numbers(state="admitted") == [3]
    assert numbers(state="settled", token_id=first) == [0]
    assert numbers(since=START + timedelta(minutes=2)) == [5, 4, 3, 2]
    assert numbers(until=START + timedelta(minutes=2)) == [1, 0]
    assert numbers(since=START + timedelta(minutes=1), until=START + timedelta(minutes=4), model="demo") == [3]


def test_a_time_filter_goes_by_the_admission_also_of_ids_without_a_time_in_them(tokens, log, db):
    token = create(tokens).token.id
    plain = add(db, token, request_id="0f8fad5b-d9cb-469f-a165-70867728950e")
    late = add(db, token, at=START, request_id="fe8fad5b-d9cb-469f-a165-70867728950e")
    timed = add(db, token, at=START, request_id=uuid7(int((START - timedelta(days=6)).timestamp() * 1000)))
    assert listed(log, since=START, until=START + timedelta(seconds=1)) == [late, plain, timed]
    assert listed(log, since=START, page_size=1) == [late, plain, timed]
    assert listed(log, until=START) == []


@pytest.mark.parametrize("wanted", [{"state": "open"}, {"state": "' OR 1=1 --"}, {"until": {"seconds": 2**60}}])
def test_a_filter_that_means_nothing_is_refused(log, admin, wanted):
    request = requests_pb2.ListRequestsRequest(filter=requests_pb2.RequestFilter(**wanted))
    assert reason(log.ListRequests, request) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("payload", ["' OR 1=1 --", "%", "_", "\\", "gpt-4'; DROP TABLE requests; --"])
def test_sql_in_a_filter_is_text(tokens, log, db, payload):
    add(db, create(tokens, name="app").token.id)
    assert listed(log, token_name=payload) == []
    assert listed(log, model=payload) == []
    assert len(listed(log)) == 1


def test_a_page_token_of_another_list_is_refused(log, admin):
    for token in ("garbage", "WyJ0b2tlbnMiLDdd"):
        assert reason(log.ListRequests, requests_pb2.ListRequestsRequest(page_token=token)) == "INVALID_ARGUMENT"


def fill(db):
    """20,000 calls of 20 tokens and four models, one a minute, some of them open, released or expired."""
    with db.write():
        db.run("INSERT INTO client_tokens (name, token_hash) SELECT 'token-' || n, 'hash-' || n FROM generate_series(1, 20) n")
        states = {1: "admitted", 2: "released", 3: "expired"}
        rows = []
        for number in range(20_000):
            at = START + timedelta(minutes=number - 19_000)
            state = states.get(number % 100, "settled")
            ended = None if state == "admitted" else to_text(at)
            model = f"gpt-{1 + number % 4}"
            rows.append((uuid7(int(at.timestamp() * 1000)), 1 + number % 20, state, model, to_text(at), ended))
        db.run_many(
            "INSERT INTO requests (request_id, token_id, identity, proxy_id, state, request_model, admitted_at, settled_at)"
            " VALUES (?, ?, 'proxy', 'p', ?, ?, ?, ?)",
            rows,
        )
    db.run("VACUUM ANALYZE")


def looked_at(plan):
    """How many rows of calls a plan has read in all, those that it threw away included."""
    rows = sum(looked_at(part) for part in plan.get("Plans", ()))
    if plan.get("Relation Name") == "requests" or "requests" in plan.get("Index Name", ""):
        rows += (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return rows


def test_a_page_costs_the_same_however_many_calls_there_are(tokens, db):
    """No plan walks over all calls or sorts them, and none counts."""
    if db.is_shared:  # PostgreSQL chooses by what the tables hold: enough calls, and their statistics
        fill(db)
    create(tokens, name="app")
    statements = []
    original = db.query
    log = RequestLog(db)
    db.query = lambda sql, parameters=(): statements.append((sql, parameters)) or original(sql, parameters)
    try:
        for wanted in (
            RequestFilter(), RequestFilter(token_id=1), RequestFilter(token_name="app"), RequestFilter(model="gpt-4"),
            RequestFilter(state="expired"), RequestFilter(state="released"), RequestFilter(state="admitted"),
            RequestFilter(since=START), RequestFilter(until=START, model="gpt-4"),
            RequestFilter(token_id=1, model="gpt-4"), RequestFilter(token_id=1, state="released"),
            RequestFilter(token_id=1, state="expired", model="gpt-4"), RequestFilter(token_id=1, state="admitted", since=START),
        ):  # fmt: skip
            log.page(wanted, limit=100, before_id=uuid7())
        log.ended(RequestFilter(), after=(to_text(START), ""), until=START, limit=100)
    finally:
        del db.query
    for sql, parameters in statements:
        if db.is_shared:
            ((plan,),) = db.query(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters)
            assert looked_at(plan[0]["Plan"]) <= 2_000, (sql, plan)
            continue
        plan = " / ".join(row[3] for row in db.query(f"EXPLAIN QUERY PLAN {sql}", parameters))
        walks_all = "SCAN r USING INDEX sqlite_autoindex_requests_1" in plan or "SCAN r /" in plan
        assert not walks_all or "state" not in sql.partition("WHERE")[2], (sql, plan)
        few = (
            "'admitted'" in sql or "requests_admitted_at (admitted_at>? AND admitted_at<?)" in plan
        )  # ids made at another time
        assert "TEMP B-TREE" not in plan or few, (sql, plan)
        assert "COUNT" not in sql.upper()


# -- the calls as they end ----------------------------------------------------------------------------------------------------


def tail(log, cursor="", **wanted):
    request = requests_pb2.TailRequestsRequest(filter=requests_pb2.RequestFilter(**wanted), cursor=cursor)
    return log.TailRequests(request, timeout=30)


def next_calls(stream):
    for message in stream:
        if message.requests:
            return [call.request_id for call in message.requests], message.cursor
    raise AssertionError("the stream ended")


def test_calls_are_told_as_they_end_and_a_cursor_goes_on_from_there(tokens, log, db, clock):
    token = create(tokens).token.id
    add(db, token, at=clock.now() - timedelta(hours=1))
    stream = tail(log)
    assert not next(stream).requests
    first = add(db, token, at=clock.now(), settled_at=to_text(clock.now() + timedelta(seconds=1)))
    clock.move(seconds=3)
    found, cursor = next_calls(stream)
    assert found == [first]
    stream.cancel()
    second = add(db, token, at=clock.now(), settled_at=to_text(clock.now()))
    third = add(db, token, at=clock.now(), settled_at=to_text(clock.now() + timedelta(seconds=1)))
    clock.move(seconds=3)
    assert next_calls(tail(log, cursor))[0] == [second, third]


def test_a_tail_ends_after_a_minute(admin, log, clock):
    stream = tail(log)
    next(stream)
    clock.move(seconds=61)
    assert [message.requests for message in stream if message.requests] == []


def test_sixteen_may_follow_the_log_and_a_place_is_free_as_soon_as_one_leaves(admin, log):
    streams = [tail(log) for _ in range(MAX_TAILS)]
    for stream in streams:
        next(stream)
    assert reason(next, tail(log)) == "OVERLOADED"
    log.ListRequests(requests_pb2.ListRequestsRequest())
    streams[0].cancel()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        late = tail(log)
        try:
            next(late)
            break
        except grpc.RpcError:
            threading.Event().wait(0.05)
    else:
        raise AssertionError("no place became free")
    for stream in (*streams[1:], late):
        stream.cancel()


def test_a_tail_goes_by_its_filter(tokens, log, db, clock):
    first, second = create(tokens, name="app").token.id, create(tokens, name="other").token.id
    stream = tail(log, token_name="other")
    next(stream)
    add(db, first, at=clock.now(), settled_at=to_text(clock.now()))
    wanted = add(db, second, at=clock.now(), settled_at=to_text(clock.now() + timedelta(milliseconds=1)))
    clock.move(seconds=3)
    assert next_calls(stream)[0] == [wanted]
    stream.cancel()
