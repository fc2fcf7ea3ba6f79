"""The outbox: what is appended is sent until it is acknowledged, and the disk use stays bounded."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from prometheus_client import CollectorRegistry

from gateway.errors import AuthUnavailable, InvalidArgument, OutboxUnavailable
from gateway.ids import uuid7
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy import outbox as outbox_module
from services.proxy.outbox import Outbox, token_key
from services.proxy.outbox_files import Segment
from tests.proxy.outbox_harness import KEY, Books, eventually, logs, outbox_of, report

BOOKED = pb.SettlementResult(response=pb.RecordUsageResponse(state="settled"))


@pytest.fixture
def registry():
    return CollectorRegistry()


async def test_what_is_appended_is_on_file_when_append_returns(tmp_path):
    outbox = Outbox.open(tmp_path, proxy_id=uuid7())
    request_id = uuid7()
    outbox.append(report(request_id), KEY)
    (file,) = logs(tmp_path)
    assert report(request_id).SerializeToString(deterministic=True) in file.read_bytes()
    await outbox.close(0.0)


async def test_no_token_and_nothing_of_one_is_on_file(tmp_path):
    secret = "sk-a-very-secret-token"
    outbox = Outbox.open(tmp_path, proxy_id=uuid7())
    request_id = uuid7()
    outbox.opened(request_id, token_key(secret))
    outbox.append(report(request_id), token_key(secret))
    (file,) = logs(tmp_path)
    assert secret.encode() not in file.read_bytes()
    assert token_key(secret) not in file.read_bytes()
    await outbox.close(0.0)


async def test_a_directory_is_for_its_owner_alone(tmp_path):
    outbox = Outbox.open(tmp_path / "made" / "here", proxy_id=uuid7())
    assert (tmp_path / "made" / "here").stat().st_mode & 0o777 == 0o700
    await outbox.close(0.0)


async def test_pending_settlements_of_a_token_travel_and_those_of_others_stay(tmp_path):
    outbox = Outbox.open(tmp_path, proxy_id=uuid7())
    mine, other = uuid7(), uuid7()
    outbox.append(report(mine), KEY)
    outbox.append(report(other), token_key("sk-other"))
    assert outbox.weight(KEY)[0] == 1
    first = outbox.pending([KEY])
    again = outbox.pending([KEY])  # also what is on its way already
    assert [settlement.request_id for settlement in first] == [mine]
    assert first == again
    outbox.acknowledged(first, [BOOKED])
    assert outbox.pending([KEY]) == []
    outbox.acknowledged(again, [BOOKED])
    assert [settlement.request_id for settlement in outbox.pending([KEY, token_key("sk-other")])] == [other]
    await outbox.close(0.0)


async def test_a_token_has_no_more_taken_than_a_batch_may_carry(tmp_path):
    outbox = Outbox.open(tmp_path, proxy_id=uuid7())
    for _ in range(300):
        outbox.append(report(uuid7(), usage_json="x" * 4000), KEY)
    taken = outbox.pending([KEY])
    assert 150 < len(taken) < 256
    assert sum(settlement.ByteSize() for settlement in taken) < 800_000
    await outbox.close(0.0)


async def test_the_first_report_of_a_call_counts(tmp_path):
    books = Books()
    request_id = uuid7()
    async with outbox_of(tmp_path, books) as outbox:
        outbox.append(report(request_id, 3), KEY)
        outbox.append(report(request_id, 4), KEY)
        outbox.progress(request_id, report(request_id, 5))
        await eventually(lambda: request_id in books.booked)
    assert books.report(request_id) == report(request_id, 3)
    assert books.conflicts == 0


async def test_what_is_acknowledged_leaves_no_file_behind(tmp_path, registry):
    books = Books()
    async with outbox_of(tmp_path, books, registry=registry) as outbox:
        for _ in range(100):
            request_id = uuid7()
            outbox.opened(request_id, KEY)
            outbox.append(report(request_id), KEY)
        assert registry.get_sample_value("gateway_proxy_outbox_pending") == 100
        assert registry.get_sample_value("gateway_proxy_outbox_bytes") > 10_000
        await eventually(lambda: len(books.booked) == 100)
        await eventually(lambda: registry.get_sample_value("gateway_proxy_outbox_pending") == 0)
    assert list(tmp_path.iterdir()) == []


async def test_a_call_that_is_still_open_at_the_end_stays_on_file(tmp_path):
    books = Books()
    request_id = uuid7()
    async with outbox_of(tmp_path, books) as outbox:
        outbox.opened(request_id, KEY)
    assert len(logs(tmp_path)) == 1
    async with outbox_of(tmp_path, books):
        await eventually(lambda: request_id in books.booked)
    assert books.report(request_id).outcome == pb.OUTCOME_SETTLED_AT_HOLD


async def test_stopping_sends_what_is_pending(tmp_path):
    books = Books()
    async with outbox_of(tmp_path, books) as outbox:
        for _ in range(1000):
            outbox.append(report(uuid7()), KEY)
    assert len(books.booked) == 1000


async def test_stopping_waits_no_longer_than_it_may(tmp_path):
    books = Books()
    books.away = True
    started = time.monotonic()
    async with outbox_of(tmp_path, books, drain=0.2) as outbox:
        outbox.append(report(uuid7()), KEY)
    assert time.monotonic() - started < 1.0
    assert len(logs(tmp_path)) == 1


# -- sending ------------------------------------------------------------------------------------------------------------------


async def test_an_outage_is_waited_out_and_ended_within_two_seconds(tmp_path):
    books = Books()
    books.away = True
    async with outbox_of(tmp_path, books) as outbox:
        for _ in range(500):
            outbox.append(report(uuid7()), KEY)
        await asyncio.sleep(1.5)
        books.away = False
        back = time.monotonic()
        await eventually(lambda: bool(books.booked), 2.0)
        assert books.batches[0] <= 16  # it asks gently first
        await eventually(lambda: len(books.booked) == 500)
        assert time.monotonic() - back < 2.0
    assert books.repeats == 0


async def test_an_outage_is_no_reason_to_ask_all_the_time(tmp_path):
    tries = 0

    async def send(settlements):
        nonlocal tries
        tries += 1
        raise AuthUnavailable("away")

    outbox = Outbox.open(tmp_path, proxy_id=uuid7())
    outbox.start(send)
    for _ in range(100):
        outbox.append(report(uuid7()), KEY)
    await asyncio.sleep(2.0)
    assert 3 <= tries <= 20
    await outbox.close(0.0)


async def test_a_request_that_did_not_come_back_is_sent_again(tmp_path):
    books = Books()
    async with outbox_of(tmp_path, books) as outbox:
        books.hold = asyncio.Event()
        request_id = uuid7()
        outbox.append(report(request_id), KEY)
        travelling = outbox.pending([KEY])
        outbox.failed(travelling)
        books.hold.set()
        await eventually(lambda: request_id in books.booked)


async def test_one_that_is_busy_is_sent_again_and_holds_up_no_other(tmp_path):
    books = Books()
    async with outbox_of(tmp_path, books) as outbox:
        busy, free = uuid7(), uuid7()
        books.busy = {busy}
        outbox.append(report(busy), KEY)
        outbox.append(report(free), KEY)
        await eventually(lambda: free in books.booked)
        assert outbox.weight(KEY)[0] == 1
        books.busy = set()
        await eventually(lambda: busy in books.booked)


async def test_what_is_refused_for_good_is_moved_aside(tmp_path, registry):
    books = Books()
    refused, booked = uuid7(), uuid7()
    books.unknown = {refused}
    async with outbox_of(tmp_path, books, registry=registry) as outbox:
        outbox.append(report(refused), KEY)
        outbox.append(report(booked), KEY)
        await eventually(lambda: booked in books.booked)
        await eventually(lambda: registry.get_sample_value("gateway_proxy_outbox_refused_total") == 1)
    (aside,) = tmp_path.glob("refused-*.log")
    line = json.loads(aside.read_text())
    assert (line["reason"], line["code"], line["report"]["request_id"]) == ("NOT_FOUND", 5, refused)
    async with outbox_of(tmp_path, books):  # it is not taken for usage to be sent
        await asyncio.sleep(0.2)
    assert aside.exists()


@pytest.mark.parametrize("code", [2, 13, 14])
async def test_a_fault_of_the_ledgers_own_refuses_no_report(tmp_path, registry, code):
    books = Books()
    request_id = uuid7()
    asked = 0

    async def send(settlements):
        nonlocal asked
        asked += 1
        if asked <= 2:  # as where a table is missing for the moment
            return [pb.SettlementResult(error=pb.ItemError(code=code, reason="INTERNAL")) for _ in settlements]
        return await books.send(settlements)

    outbox = Outbox.open(tmp_path, proxy_id=uuid7(), registry=registry)
    outbox.append(report(request_id), KEY)
    outbox.start(send)
    await eventually(lambda: request_id in books.booked)
    await outbox.close(0.0)
    assert registry.get_sample_value("gateway_proxy_outbox_refused_total") == 0
    assert not list(tmp_path.glob("refused-*.log"))


async def test_another_report_for_a_booked_call_is_moved_aside(tmp_path, registry):
    books = Books()
    request_id = uuid7()
    books.booked[request_id] = b"something else"
    async with outbox_of(tmp_path, books, registry=registry) as outbox:
        outbox.append(report(request_id), KEY)
        await eventually(lambda: registry.get_sample_value("gateway_proxy_outbox_refused_total") == 1)
    assert books.booked[request_id] == b"something else"


async def test_a_batch_that_cannot_be_read_is_sent_one_by_one(tmp_path, registry):
    books = Books()
    bad = uuid7()

    async def send(settlements):
        if any(settlement.request_id == bad for settlement in settlements):
            raise InvalidArgument("usage_json is too long")
        return await books.send(settlements)

    outbox = Outbox.open(tmp_path, proxy_id=uuid7(), registry=registry)
    good = [uuid7() for _ in range(5)]
    for request_id in (*good[:2], bad, *good[2:]):
        outbox.append(report(request_id), KEY)
    outbox.start(send)
    await eventually(lambda: set(books.booked) == set(good))
    await eventually(lambda: registry.get_sample_value("gateway_proxy_outbox_refused_total") == 1)
    await outbox.close(0.0)


async def test_a_ledger_that_answers_too_little_is_asked_again(tmp_path):
    books = Books()
    answers = 0

    async def send(settlements):
        nonlocal answers
        answers += 1
        return [] if answers == 1 else await books.send(settlements)

    outbox = Outbox.open(tmp_path, proxy_id=uuid7())
    outbox.append(report(uuid7()), KEY)
    outbox.start(send)
    await eventually(lambda: len(books.booked) == 1)
    await outbox.close(0.0)


# -- files --------------------------------------------------------------------------------------------------------------------


async def test_disk_use_stays_bounded_on_a_busy_proxy(tmp_path, registry, monkeypatch):
    monkeypatch.setattr("services.proxy.journal.CARE_INTERVAL", 0.02)
    books = Books()
    stream, most = uuid7(), 0.0
    async with outbox_of(tmp_path, books, registry=registry, segment_bytes=20_000) as outbox:
        outbox.opened(stream, KEY)  # one long stream, which would keep the first file and so all others
        for turn in range(60):
            outbox.progress(stream, report(stream, turn, duration_ms=turn * 1000))
            calls = [uuid7() for _ in range(100)]
            for request_id in calls:
                outbox.opened(request_id, KEY)
                outbox.append(report(request_id), KEY)
            await eventually(lambda calls=calls: all(request_id in books.booked for request_id in calls))
            most = max(most, registry.get_sample_value("gateway_proxy_outbox_bytes") or 0)
        assert most < 200_000  # and a million bytes were written
        assert len(logs(tmp_path)) < 8
        outbox.append(report(stream, 60), KEY)
        await eventually(lambda: stream in books.booked)
    assert books.conflicts == books.repeats == 0
    assert list(tmp_path.iterdir()) == []


async def test_a_stream_that_was_carried_forward_is_settled_by_its_latest_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("services.proxy.journal.CARE_INTERVAL", 0.02)
    books = Books()
    stream = uuid7()
    outbox = Outbox.open(tmp_path, proxy_id=uuid7(), segment_bytes=5_000)
    outbox.start(books.send)
    outbox.opened(stream, KEY)
    outbox.progress(stream, report(stream, 10, duration_ms=1000))
    first = logs(tmp_path)[0]
    while first.exists():
        outbox.append(report(uuid7()), KEY)
        await asyncio.sleep(0.001)
    await outbox.close(2.0)
    async with outbox_of(tmp_path, books):
        await eventually(lambda: stream in books.booked)
    assert sum(item.count for item in books.report(stream).usage if item.unit == "output") == 20


async def test_settlements_are_synced_in_a_thread_and_nothing_else_is(tmp_path, monkeypatch):
    synced: list[bool] = []
    real = Segment.sync

    def sync(self):
        try:
            asyncio.get_running_loop()
            synced.append(False)
        except RuntimeError:
            synced.append(True)
        real(self)

    monkeypatch.setattr(Segment, "sync", sync)
    books = Books()
    async with outbox_of(tmp_path, books) as outbox:
        request_id = uuid7()
        outbox.opened(request_id, KEY)
        outbox.progress(request_id, report(request_id))
        await asyncio.sleep(0.5)
        assert synced == []
        outbox.append(report(request_id), KEY)
        await eventually(lambda: bool(synced), 0.5)
        for _ in range(50):
            outbox.append(report(uuid7()), KEY)
            await asyncio.sleep(0.01)
        assert len(synced) <= 5
    assert all(synced)


async def test_two_proxies_share_a_directory(tmp_path):
    one, two = Books(), Books()
    async with outbox_of(tmp_path, one) as first, outbox_of(tmp_path, two) as second:
        for number in range(100):
            (first if number % 2 else second).append(report(uuid7()), KEY)
        await eventually(lambda: len(one.booked) == len(two.booked) == 50)
    assert list(tmp_path.iterdir()) == []


async def test_a_name_that_is_taken_is_not_written_into(tmp_path):
    proxy_id = uuid7()
    (tmp_path / f"{proxy_id}.log").write_bytes(b"someone else's")
    outbox = Outbox.open(tmp_path, proxy_id=proxy_id)
    outbox.append(report(uuid7()), KEY)
    assert (tmp_path / f"{proxy_id}.log").read_bytes() == b"someone else's"
    await outbox.close(0.0)


def test_a_token_key_is_sixteen_bytes_and_takes_any_text():
    assert len(token_key("sk-\udcff")) == 16
    assert token_key("a") != token_key("b")


async def test_an_outbox_that_cannot_be_written_to_is_told_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutboxUnavailable, match="cannot be written to"):
        Outbox.open(tmp_path / "file", proxy_id=uuid7())


async def test_adoption_and_sending_keep_the_loop_free(tmp_path, monkeypatch):
    """10,000 settlements from files are read and sent without holding up what else the proxy does."""
    writer = Outbox.open(tmp_path, proxy_id=uuid7())
    for _ in range(10_000):
        writer.append(report(uuid7()), KEY)
    await writer.close(0.0)
    monkeypatch.setattr(outbox_module, "ADOPTION_INTERVAL", 60.0)
    books = Books()
    worst = 0.0
    async with outbox_of(tmp_path, books):
        while len(books.booked) < 10_000:
            before = time.thread_time()  # the loop's own work, whatever else the machine does meanwhile
            await asyncio.sleep(0)
            worst = max(worst, time.thread_time() - before)
    assert worst < 0.25


@pytest.mark.parametrize(
    ("outcome", "plain"),
    [
        (pb.OUTCOME_SETTLED, (pb.OUTCOME_SETTLED_AT_HOLD, pb.USAGE_SOURCE_ESTIMATED)),
        (pb.OUTCOME_RELEASED, (pb.OUTCOME_RELEASED, pb.USAGE_SOURCE_NONE)),
    ],
)
async def test_a_report_whose_content_the_ledger_refuses_is_moved_aside_and_its_call_ends_by_a_plain_one(
    tmp_path, outcome, plain
):
    books = Books()
    taken: list[pb.RecordUsageRequest] = []

    async def send(settlements):
        taken.extend(settlements)
        if settlements[0].status > 599:
            return [
                pb.SettlementResult(error=pb.ItemError(code=3, reason="INVALID_ARGUMENT", message="status"))
                for _ in settlements
            ]
        return await books.send(settlements)

    outbox = Outbox.open(tmp_path, proxy_id=uuid7())
    outbox.start(send)
    bad = report(request_id := uuid7())
    bad.outcome, bad.status = outcome, 700
    outbox.opened(request_id, KEY)
    outbox.append(bad, KEY)
    await eventually(lambda: request_id in books.booked)
    ended = books.report(request_id)
    assert (ended.outcome, ended.source) == plain
    assert (ended.error_code, ended.status) == ("settlement_refused", 0)
    await outbox.close(1.0)
    assert '"status": 700' in next(tmp_path.glob("refused-*.log")).read_text()


async def test_a_plain_report_that_is_refused_too_is_given_up(tmp_path):
    tries = []

    async def send(settlements):
        tries.append(len(settlements))
        return [pb.SettlementResult(error=pb.ItemError(code=3, reason="INVALID_ARGUMENT", message="no")) for _ in settlements]

    outbox = Outbox.open(tmp_path, proxy_id=uuid7())
    outbox.start(send)
    outbox.append(report(uuid7()), KEY)
    await eventually(lambda: outbox.weight(KEY)[0] == 0)
    assert len(tries) == 2
    await outbox.close(1.0)
