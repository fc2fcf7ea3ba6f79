"""What the client keeps while auth is away: the first report of a call counts, here as in the ledger."""

from __future__ import annotations

import pytest

from gateway.client.pending import Pending
from gateway.errors import AlreadyExists
from gateway.ids import uuid7
from gateway.stubs.auth.v1 import auth_pb2 as pb


def report(request_id, count):
    return pb.RecordUsageRequest(request_id=request_id, usage=[pb.UsageItem(unit="output", count=count)])


def test_another_report_of_a_call_is_refused_while_the_first_one_waits():
    pending, request_id = Pending(10), uuid7()
    assert pending.add(report(request_id, 1))
    assert pending.add(report(request_id, 1))
    with pytest.raises(AlreadyExists):
        pending.add(report(request_id, 2))
    assert pending.next() == report(request_id, 1)


def test_no_more_are_kept_than_there_is_room_for_and_those_that_are_kept_stay():
    pending = Pending(1)
    first = report(uuid7(), 1)
    assert pending.add(first)
    assert not pending.add(report(uuid7(), 1))
    pending.done(first)
    assert pending.add(report(uuid7(), 1))
