"""Calls that stand as open for a proxy that does not know them, and calls of a dead proxy that were never sent."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest

from gateway.ids import uuid7
from gateway.stubs.auth.v1 import auth_pb2 as pb
from tests.support.ledger import PROXY, admission, request_row, settled, token_row


def admit(auth, *, proxy_id: str = PROXY) -> str:
    one = admission(proxy_id=proxy_id, identity="proxy")
    [answer] = auth.ledger.commit([], [one]).admissions
    assert not isinstance(answer, Exception)
    return one.request_id


def test_a_beat_is_told_what_stands_as_open_for_long_and_ends_what_it_disowns(auth):
    stub, other = auth.stub(), uuid7()
    known, lost, foreign = admit(auth), admit(auth), admit(auth, proxy_id=other)
    assert list(stub.Beat(pb.BeatRequest(proxy_id=PROXY)).open_request_ids) == []  # they may just be being answered
    auth.clock.offset += timedelta(seconds=31)
    young = admit(auth)
    assert list(stub.Beat(pb.BeatRequest(proxy_id=PROXY)).open_request_ids) == sorted([known, lost])
    heard = stub.Beat(pb.BeatRequest(proxy_id=PROXY, disowned_request_ids=[lost, foreign, uuid7()]))
    assert list(heard.open_request_ids) == [known]
    states = {one: request_row(auth.db, one)["state"] for one in (known, lost, foreign, young)}
    assert states == {known: "admitted", lost: "expired", foreign: "admitted", young: "admitted"}
    row = request_row(auth.db, lost)
    assert (row["cost_nanos"], row["usage_source"]) == (row["held_nanos"], "estimated")
    assert auth.registry.get_sample_value("gateway_calls_expired_total") == 1


def test_a_settlement_that_comes_all_the_same_wins(auth):
    lost = admit(auth)
    auth.clock.offset += timedelta(seconds=31)
    auth.stub().Beat(pb.BeatRequest(proxy_id=PROXY, disowned_request_ids=[lost]))
    auth.ledger.commit([settled(lost)], [])
    assert request_row(auth.db, lost)["state"] == "settled"
    token = token_row(auth.db)
    assert (token["held_nanos"], token["open_calls"]) == (0, 0)
    assert token["total_spent_nanos"] == request_row(auth.db, lost)["cost_nanos"]


def test_a_settlement_that_came_before_is_not_ended_again(auth):
    done = admit(auth)
    auth.ledger.commit([settled(done)], [])
    before = token_row(auth.db)
    auth.stub().Beat(pb.BeatRequest(proxy_id=PROXY, disowned_request_ids=[done]))
    assert request_row(auth.db, done)["state"] == "settled"
    assert token_row(auth.db) == before


def test_what_a_dead_proxy_never_sent_is_released_however_often_that_is_said(auth):
    stub, other = auth.stub(), uuid7()
    with auth.db.write():
        auth.db.run("UPDATE client_tokens SET max_amount = ?", (1_000_000,))
    sent, unsent, foreign = admit(auth), [admit(auth) for _ in range(300)], admit(auth, proxy_id=other)
    request = pb.ReleaseUnsentRequest(proxy_id=PROXY, sent_request_ids=[sent])
    assert stub.ReleaseUnsent(request).released == 300
    assert stub.ReleaseUnsent(request).released == 0
    for one in unsent[::50]:
        row = request_row(auth.db, one)
        assert (row["state"], row["cost_nanos"], row["error_code"]) == ("released", 0, "not_sent")
    assert request_row(auth.db, sent)["state"] == request_row(auth.db, foreign)["state"] == "admitted"
    late = admit(auth)  # auth was stopped while it decided, and its answer came when nobody was there
    assert stub.ReleaseUnsent(request).released == 1
    assert request_row(auth.db, late)["state"] == "released"
    assert token_row(auth.db)["total_spent_nanos"] == 0


@pytest.mark.parametrize(
    "request_",
    [
        pb.ReleaseUnsentRequest(),
        pb.ReleaseUnsentRequest(proxy_id="x"),
        pb.ReleaseUnsentRequest(proxy_id=PROXY, sent_request_ids=["x"] * 10_001),
    ],
)
def test_what_names_no_process_is_refused(auth, request_):
    with pytest.raises(grpc.RpcError) as refused:
        auth.stub().ReleaseUnsent(request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_none_but_a_proxy_may_say_so(auth):
    for name in ("billing", "operator", "admin"):
        with pytest.raises(grpc.RpcError) as refused:
            auth.stub(name).ReleaseUnsent(pb.ReleaseUnsentRequest(proxy_id=PROXY))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
