"""Refusals are counted, each once, and found by their request id; a flood of them stays small."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest

from gateway.admission import Admission
from gateway.clock import to_text
from gateway.errors import DatabaseUnavailable, InvalidArgument, NotFound, RateLimited, TokenUnknown
from gateway.ids import uuid7
from gateway.quota import Call
from gateway.rpc.status import from_status
from gateway.storage.refusals import find
from gateway.storage.request_log import RequestLog
from gateway.storage.retention import AT_ONCE, prune_refusals
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.auth.denials import MOST_ALIKE, MOST_KEPT, MOST_UNKNOWN, DenialLog
from tests.support.ledger import DOLLAR, MODEL, PROXY, SECRET, add_token, open_ledger


def asked(request_id=None, **changes):
    values = {
        "token": SECRET,
        "request_id": uuid7() if request_id is None else request_id,
        "endpoint": "/v1/chat/completions",
        "request_model": MODEL,
        "input_token_ceiling": 5_000,
        "max_output_tokens": 90,
        "proxy_id": PROXY,
        "client_ip": "10.0.0.9",
    }
    return pb.ValidateTokenRequest(**values | changes)


def counts(db):
    return dict(((token_id, reason), count) for token_id, reason, count in db.query(
        "SELECT token_id, reason, SUM(count) FROM denials GROUP BY token_id, reason"
    ))  # fmt: skip


def kept(db):
    return {row[0] for row in db.query("SELECT request_id FROM refusals")}


def note(log, count, error, *, ip="10.0.0.9", token_id="1"):
    """Refusals as the ledger would answer them; gives their ids."""
    ids = [uuid7() for _ in range(count)]
    for request_id in ids:
        metadata = {"token_id": token_id} if token_id else {}
        log.note(Admission("", Call(MODEL), "proxy", request_id, client_ip=ip), error("no", metadata=metadata))
    return ids


def test_a_refusal_is_found_by_its_id_with_its_figures(auth):
    call = asked()
    denial = auth.stub().ValidateToken(call).denial
    auth.denials.flush(auth.ledger)
    found = RequestLog(auth.db).refusal(call.request_id)
    assert (found.token_id, found.token_name, found.reason, found.message) == (1, "t", "REQUEST_EXCEEDS_BUDGET", denial.message)
    assert (found.request_model, found.endpoint, found.client_ip) == (MODEL, "/v1/chat/completions", "10.0.0.9")
    assert found.figures["remaining_nanos"] == str(DOLLAR)
    assert found.figures["needed_nanos"] == str(denial.needed_nanos)
    with pytest.raises(NotFound):
        RequestLog(auth.db).get(call.request_id)


def test_each_refusal_counts_once_alone_or_in_a_batch_and_a_dry_run_never(auth):
    stub = auth.stub()
    batch = [asked() for _ in range(5)] + [asked(token="nobody-has-this") for _ in range(3)]
    stub.BatchValidateTokens(pb.BatchValidateTokensRequest(validations=batch))
    stub.ValidateToken(asked())
    stub.ValidateToken(asked("", dry_run=True))
    stub.ValidateToken(asked(input_token_ceiling=10))  # this one is granted
    auth.denials.flush(auth.ledger)
    auth.denials.flush(auth.ledger)
    assert counts(auth.db) == {(1, "REQUEST_EXCEEDS_BUDGET"): 6, (0, "TOKEN_UNKNOWN"): 3}
    assert kept(auth.db) >= {call.request_id for call in batch}
    assert len(kept(auth.db)) == 9


def test_an_unknown_token_and_a_look_are_found_too(auth):
    unknown, look = asked(token="nobody-has-this"), uuid7()
    add_token(auth.db, "switched-off-1", enabled=0)
    auth.stub().ValidateToken(unknown)
    auth.stub().ValidateToken(pb.ValidateTokenRequest(token="switched-off-1", look_id=look, client_ip="10.0.0.9"))
    auth.denials.flush(auth.ledger)
    found = find(auth.db, unknown.request_id)
    assert (found.token_id, found.token_name, found.reason) == (0, "", "TOKEN_UNKNOWN")
    assert (find(auth.db, look).reason, find(auth.db, look).token_id) == ("TOKEN_DISABLED", 2)


def test_a_call_that_is_made_has_no_other_id_under_which_its_refusal_is_kept(auth):
    with pytest.raises(grpc.RpcError) as caught:
        auth.stub().ValidateToken(asked(look_id=uuid7()))
    error = from_status(caught.value)
    assert isinstance(error, InvalidArgument)
    assert "look_id" in error.message


def test_a_call_that_is_admitted_after_all_shows_its_row(auth):
    """An internal service may ask again under the same id."""
    add_token(auth.db, "one-at-once-1", max_parallel_requests=1)
    first, second = (asked(token="one-at-once-1", input_token_ceiling=10, max_output_tokens=10) for _ in range(2))
    stub = auth.stub()
    stub.ValidateToken(first)
    assert stub.ValidateToken(second).denial.limit == "max_parallel_requests"
    stub.RecordUsage(pb.RecordUsageRequest(request_id=first.request_id, outcome=pb.OUTCOME_RELEASED))
    assert stub.ValidateToken(second).grant.token_id == 2
    auth.denials.flush(auth.ledger)
    assert RequestLog(auth.db).get(second.request_id).state == "admitted"


def test_a_flood_of_one_kind_is_counted_whole_kept_in_part_and_pushes_nobody_out(auth):
    log = DenialLog(auth.clock)
    flood = note(log, 10 * MOST_KEPT, RateLimited)
    strangers = note(log, MOST_KEPT, TokenUnknown, token_id="", ip="")
    (someone,) = note(log, 1, RateLimited, ip="192.0.2.7")
    log.flush(auth.ledger)
    assert counts(auth.db) == {(1, "RATE_LIMITED"): 10 * MOST_KEPT + 1, (0, "TOKEN_UNKNOWN"): MOST_KEPT}
    assert kept(auth.db) == {*flood[:MOST_ALIKE], *strangers[:MOST_ALIKE], someone}
    (later,) = note(log, 1, RateLimited)
    log.flush(auth.ledger)
    assert later in kept(auth.db)


def test_a_flood_from_everywhere_keeps_to_its_bounds(auth):
    log = DenialLog(auth.clock)
    for number in range(2 * MOST_KEPT):
        note(log, 1, TokenUnknown, token_id="", ip=f"10.1.{number // 250}.{number % 250}")
    for number in range(2 * MOST_KEPT):
        note(log, 1, RateLimited, token_id=str(number + 1))
    log.flush(auth.ledger)
    assert len(kept(auth.db)) == MOST_KEPT
    assert auth.db.query("SELECT COUNT(*) FROM refusals WHERE token_id = 0") == [(MOST_UNKNOWN,)]
    assert sum(counts(auth.db).values()) == 4 * MOST_KEPT


def test_what_was_counted_while_the_database_is_away_is_written_when_it_is_back(auth):
    """A ledger that takes no errands any more answers as one whose database is away."""
    gone = open_ledger(auth.db, auth.clock)
    gone.close()
    log = DenialLog(auth.clock)
    before = note(log, 3, RateLimited)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            log.flush(gone)
    after = note(log, 2, RateLimited)
    log.flush(auth.ledger)
    log.flush(auth.ledger)
    assert counts(auth.db) == {(1, "RATE_LIMITED"): 5}
    assert kept(auth.db) == {*before, *after}


def test_two_services_write_the_same_refusal_once(auth):
    """The proxy may ask a second auth about a call that the first one is late with."""
    logs = [DenialLog(auth.clock), DenialLog(auth.clock)]
    request_id = uuid7()
    for log in logs:
        refusal = RateLimited("no", retry_after=3.0, metadata={"token_id": "1", "limit": "requests_per_minute"})
        log.note(Admission("", Call(MODEL), "proxy", request_id), refusal)
        log.flush(auth.ledger)
    assert kept(auth.db) == {request_id}
    assert find(auth.db, request_id).figures == {"limit": "requests_per_minute"}  # the moment to try again is past


def test_old_refusals_are_deleted_in_batches(auth):
    log = DenialLog(auth.clock)
    auth.clock.offset = -timedelta(days=30)
    for number in range(AT_ONCE + 20):
        note(log, 1, RateLimited, token_id=str(number + 1))
    log.flush(auth.ledger)
    auth.clock.offset = timedelta(0)
    (young,) = note(log, 1, RateLimited)
    log.flush(auth.ledger)
    before = auth.clock.now() - timedelta(days=20)
    assert [prune_refusals(auth.db, before) for _ in range(3)] == [AT_ONCE, 20, 0]
    assert kept(auth.db) == {young}
    assert auth.db.query("SELECT COUNT(*) FROM refusals WHERE at < ?", (to_text(before),)) == [(0,)]
