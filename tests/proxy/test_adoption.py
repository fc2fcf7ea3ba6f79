"""What a dead process left behind is settled once, by whoever comes first, the same whoever it is."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context

import pytest
from prometheus_client import CollectorRegistry

from gateway.ids import uuid7
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy import outbox as outbox_module
from services.proxy import outbox_tally
from services.proxy.adoption import adopt
from services.proxy.outbox import Outbox
from services.proxy.outbox_files import Kind, encode
from tests.proxy.outbox_harness import (
    KEY,
    Books,
    eventually,
    logs,
    opened_record,
    outbox_of,
    output_of,
    report,
    settlement_record,
)


async def die(outbox: Outbox) -> None:
    """Lets go of an outbox as a killed process does: nothing more is written, the locks are gone."""
    for segment in outbox._journal._segments:
        segment.close()
    outbox._journal._segments.clear()
    outbox._journal._thread.shutdown()


async def test_what_was_settled_and_not_acknowledged_is_sent(tmp_path):
    dead = Outbox.open(tmp_path, proxy_id=uuid7())
    first, second = uuid7(), uuid7()
    for request_id in (first, second):
        dead.opened(request_id, KEY)
        dead.append(report(request_id), KEY)
    settlements = dead.pending([KEY], 1)
    dead.acknowledged(settlements, [pb.SettlementResult(response=pb.RecordUsageResponse())])
    await die(dead)
    books = Books()
    async with outbox_of(tmp_path, books):
        await eventually(lambda: len(books.booked) == 1)
        assert books.booked[second] == report(second).SerializeToString(deterministic=True)
        await eventually(lambda: len(logs(tmp_path)) == 1)
    assert logs(tmp_path) == []


async def test_a_call_that_was_only_opened_is_charged_its_hold(tmp_path):
    dead = Outbox.open(tmp_path, proxy_id=uuid7())
    request_id = uuid7()
    dead.opened(request_id, KEY)
    await die(dead)
    books = Books()
    async with outbox_of(tmp_path, books):
        await eventually(lambda: request_id in books.booked)
    assert books.report(request_id).outcome == pb.OUTCOME_SETTLED_AT_HOLD
    assert books.report(request_id).error_code == "proxy_died"
    assert books.report(request_id).source == pb.USAGE_SOURCE_ESTIMATED


@pytest.mark.parametrize(
    ("progress", "charged"),
    [
        ([(10, 1000)], 20),  # once more what its first second gave
        ([(10, 1000), (25, 2000)], 40),
        ([(10, 1000), (25, 2000), (25, 3000)], 25),  # it stood still
        ([(10, 1000), (15, 1500)], 25),  # half a second gave 5
        ([(10, 1000), (40, 3000)], 70),  # what two seconds gave is not cut down: the next record would have come as late
    ],
)
async def test_a_stream_is_charged_its_progress_and_once_more_its_last_second(tmp_path, progress, charged):
    dead = Outbox.open(tmp_path, proxy_id=uuid7())
    request_id = uuid7()
    dead.opened(request_id, KEY)
    for output, elapsed in progress:
        dead.progress(request_id, report(request_id, output, duration_ms=elapsed))
    await die(dead)
    books = Books()
    async with outbox_of(tmp_path, books):
        await eventually(lambda: request_id in books.booked)
    settled = books.report(request_id)
    assert output_of(settled) == charged
    assert (settled.outcome, settled.source) == (pb.OUTCOME_SETTLED, pb.USAGE_SOURCE_ESTIMATED)
    assert settled.error_code == "proxy_died"


async def test_a_stream_whose_numbers_were_not_believed_is_charged_its_hold(tmp_path):
    dead = Outbox.open(tmp_path, proxy_id=uuid7())
    request_id = uuid7()
    dead.opened(request_id, KEY)
    told = pb.RecordUsageRequest(
        request_id=request_id, outcome=pb.OUTCOME_SETTLED_AT_HOLD, source=pb.USAGE_SOURCE_PROVIDER, duration_ms=1000
    )
    dead.progress(request_id, told)
    await die(dead)
    books = Books()
    async with outbox_of(tmp_path, books):
        await eventually(lambda: request_id in books.booked)
    settled = books.report(request_id)
    assert (settled.outcome, settled.error_code, list(settled.usage)) == (pb.OUTCOME_SETTLED_AT_HOLD, "proxy_died", [])


async def test_the_same_files_give_the_same_settlements_whoever_reads_them(tmp_path):
    dead = Outbox.open(tmp_path, proxy_id=uuid7(), segment_bytes=2000)
    for number in range(60):
        request_id = uuid7()
        dead.opened(request_id, KEY)
        if number % 3:
            dead.progress(request_id, report(request_id, number, duration_ms=900))
        if number % 3 == 2:
            dead.append(report(request_id, number), KEY)
    await die(dead)
    assert len(logs(tmp_path)) > 3
    readings = []
    for _ in range(2):
        found = adopt(tmp_path)
        readings.append([(orphan.request_id, orphan.report) for group in found for orphan in group.orphans])
        for group in found:
            group.close()
    assert len(readings[0]) == 60
    assert readings[0] == readings[1]


async def test_a_call_is_settled_by_all_that_its_process_wrote_of_it(tmp_path):
    """Its settlement may stand in a later file than what opened it."""
    dead = Outbox.open(tmp_path, proxy_id=uuid7(), segment_bytes=200)
    calls = [uuid7() for _ in range(20)]
    for request_id in calls:
        dead.opened(request_id, KEY)
    for request_id in calls:
        dead.append(report(request_id), KEY)
    await die(dead)
    assert len(logs(tmp_path)) > 5
    books = Books()
    async with outbox_of(tmp_path, books):
        await eventually(lambda: len(books.booked) == 20)
    assert {pb.RecordUsageRequest.FromString(raw).outcome for raw in books.booked.values()} == {pb.OUTCOME_SETTLED}
    assert books.conflicts == 0


async def test_files_are_kept_until_all_is_acknowledged(tmp_path):
    dead = Outbox.open(tmp_path, proxy_id=uuid7())
    request_id = uuid7()
    dead.append(report(request_id), KEY)
    await die(dead)
    kept = logs(tmp_path)
    books = Books()
    books.away = True
    async with outbox_of(tmp_path, books, drain=0.0):
        await asyncio.sleep(0.3)
    assert logs(tmp_path) == kept
    books.away = False
    async with outbox_of(tmp_path, books):
        await eventually(lambda: logs(tmp_path) != kept and request_id in books.booked)


async def test_files_in_use_are_left_alone(tmp_path):
    books = Books()
    books.away = True
    async with outbox_of(tmp_path, books, drain=0.0) as living:
        request_id = uuid7()
        living.opened(request_id, KEY)
        other = Books()
        async with outbox_of(tmp_path, other):
            await asyncio.sleep(0.3)
        assert other.booked == {}


async def test_files_left_later_are_adopted_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox_module, "ADOPTION_INTERVAL", 0.2)
    books = Books()
    async with outbox_of(tmp_path, books):
        await asyncio.sleep(0.05)
        dead = Outbox.open(tmp_path, proxy_id=uuid7())
        request_id = uuid7()
        dead.append(report(request_id), KEY)
        await die(dead)
        await eventually(lambda: request_id in books.booked)


def test_a_copy_of_a_file_counts_once(tmp_path):
    async def story() -> None:
        dead = Outbox.open(tmp_path, proxy_id=uuid7())
        opened, settled = uuid7(), uuid7()
        dead.opened(opened, KEY)
        dead.append(report(settled), KEY)
        await die(dead)
        (tmp_path / f"{uuid7()}.log").write_bytes(logs(tmp_path)[0].read_bytes())
        books = Books()
        async with outbox_of(tmp_path, books):
            await eventually(lambda: len(books.booked) == 2 and len(logs(tmp_path)) == 1)
        assert books.conflicts == 0

    asyncio.run(story())


# -- damage -----------------------------------------------------------------------------------------------------------------


async def settle_file(directory, data: bytes, registry: CollectorRegistry | None = None) -> Books:
    directory.mkdir()
    (directory / f"{uuid7()}.log").write_bytes(data)
    books = Books()
    async with outbox_of(directory, books, registry=registry):
        await eventually(lambda: len(logs(directory)) == 1)
    return books


async def test_a_last_record_cut_at_each_byte_leaves_the_earlier_ones(tmp_path):
    first, second, third = uuid7(), uuid7(), uuid7()
    last = settlement_record(report(third))
    good = settlement_record(report(first)) + settlement_record(report(second))
    for cut in range(1, len(last), 13):
        registry = CollectorRegistry()
        directory = tmp_path / str(cut)
        books = await settle_file(directory, good + last[:cut], registry)
        assert set(books.booked) == {first, second}
        assert books.repeats == 0
        assert registry.get_sample_value("gateway_proxy_outbox_corrupt_total") == 1
        (aside,) = directory.glob("*.corrupt")
        assert aside.read_bytes() == last[:cut]
        assert aside.stat().st_mode & 0o777 == 0o600


async def test_a_flipped_byte_loses_at_most_its_own_record(tmp_path):
    ids = [uuid7() for _ in range(3)]
    data = b"".join(opened_record(request_id) + settlement_record(report(request_id)) for request_id in ids)
    for position in range(0, len(data), 17):
        torn = bytearray(data)
        torn[position] ^= 1 << random.randrange(8)
        books = await settle_file(tmp_path / str(position), bytes(torn))
        outcomes = [books.report(request_id).outcome for request_id in ids]  # none is lost: what opened it is left of it
        assert outcomes.count(pb.OUTCOME_SETTLED) >= 2


async def test_a_file_that_is_no_outbox_file_is_set_aside_and_does_no_harm(tmp_path):
    registry = CollectorRegistry()
    books = await settle_file(tmp_path / "garbage", os.urandom(5000), registry)
    assert books.booked == {}
    assert registry.get_sample_value("gateway_proxy_outbox_corrupt_total") == 1
    async with outbox_of(tmp_path / "garbage", books, registry=(again := CollectorRegistry())):
        await asyncio.sleep(0.1)
    assert again.get_sample_value("gateway_proxy_outbox_corrupt_total") == 0


async def test_a_record_of_an_unreadable_report_is_passed_over(tmp_path):
    good = uuid7()
    data = encode(Kind.SETTLEMENT, b"\xff\xff\xff") + encode(Kind.PROGRESS, b"x") + settlement_record(report(good))
    books = await settle_file(tmp_path / "unreadable", data)
    assert set(books.booked) == {good}


async def test_an_empty_file_is_removed(tmp_path):
    books = await settle_file(tmp_path / "empty", b"")
    assert books.booked == {}


# -- processes ----------------------------------------------------------------------------------------------------------------


async def test_a_killed_process_loses_nothing_that_it_had_appended(tmp_path):
    for _ in range(6):
        directory = tmp_path / uuid7()
        writer = subprocess.Popen(  # noqa: ASYNC220 - it is killed before anything else happens on this loop
            [sys.executable, "-m", "tests.proxy.outbox_harness", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdin is not None
        said = [writer.stdout.readline() for _ in range(random.randrange(1, 1500))]
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
        writer.stdin.close()
        writer.wait()
        writer.stdout.close()
        last: dict[str, str] = {}
        for line in said:
            if line.endswith("\n"):
                step, request_id = line.split()
                last[request_id] = step
        books = Books()
        async with outbox_of(directory, books):
            await eventually(lambda books=books, last=last: len(books.booked) >= len(last))
        assert len(books.booked) <= len(last) + 1  # one may be written whose name it did not come to say
        assert books.repeats == books.conflicts == 0
        for request_id, step in last.items():
            settled = books.report(request_id)
            if step == "settled":
                assert settled == report(request_id, 9)
        assert logs(directory) == []


def _adopt_alone(directory, gate, answers) -> None:
    gate.wait()
    found = adopt(directory)
    answers.put(sorted((orphan.request_id, orphan.report) for group in found for orphan in group.orphans))
    gate.wait()  # nobody lets go before all have tried


async def test_of_two_processes_one_adopts_a_file(tmp_path):
    context = get_context("spawn")
    dead = Outbox.open(tmp_path, proxy_id=uuid7(), segment_bytes=500)
    for _ in range(50):
        dead.append(report(uuid7()), KEY)
    await die(dead)
    gate, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=_adopt_alone, args=(tmp_path, gate, answers)) for _ in range(2)]
    for process in both:
        process.start()
    found = [await asyncio.to_thread(answers.get) for _ in both]
    for process in both:
        process.join()
    answers.close()
    assert sorted(len(orphans) for orphans in found) == [0, 50]


async def test_ten_thousand_entries_are_replayed_within_five_seconds(tmp_path):
    (tmp_path / f"{uuid7()}.log").write_bytes(
        b"".join(opened_record(uuid7()) + settlement_record(report(uuid7())) for _ in range(5_000))
    )
    books = Books()
    started = time.monotonic()
    async with outbox_of(tmp_path, books):
        await eventually(lambda: len(books.booked) == 10_000, 5.0)
    assert time.monotonic() - started < 5.0
    assert max(books.batches) <= 256


async def test_of_very_many_entries_most_stay_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox_module, "BODIES_IN_MEMORY", 10)
    ids = [uuid7() for _ in range(100)]
    (tmp_path / f"{uuid7()}.log").write_bytes(b"".join(settlement_record(report(request_id)) for request_id in ids))
    books = Books()
    books.away = True
    async with outbox_of(tmp_path, books) as outbox:
        await eventually(lambda: len(outbox._calls) == 100)
        assert sum(call.body is not None for call in outbox._calls.values()) <= 11
        books.away = False
        await eventually(lambda: len(books.booked) == 100)
    assert all(books.report(request_id) == report(request_id) for request_id in ids)


# -- calls that were admitted and never sent ----------------------------------------------------------------------------------


class Released:
    """Takes what is to be released of dead processes."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[str]]] = []

    async def __call__(self, proxy_id: str, sent: list[str]) -> None:
        self.told.append((proxy_id, sorted(sent)))


async def released_of(folder) -> list[tuple[str, list[str]]]:
    """What a process that adopts this folder has released."""
    books, released = Books(), Released()
    outbox = Outbox.open(folder, proxy_id=uuid7())
    outbox.start(books.send, released)
    await eventually(lambda: not outbox._groups and len(logs(folder)) <= 1)
    await asyncio.sleep(0.5)
    await outbox.close(1.0)
    return released.told


@pytest.mark.parametrize("calls", [0, 1, 100])
async def test_who_adopts_a_whole_outbox_names_what_was_sent_and_has_the_rest_released(tmp_path, calls):
    dead = Outbox.open(tmp_path, proxy_id=(proxy_id := uuid7()), segment_bytes=1000)
    sent = sorted(uuid7() for _ in range(calls))
    for request_id in sent:
        dead.opened(request_id, KEY)
    await die(dead)
    assert (await released_of(tmp_path))[:1] == [(proxy_id, sent)]
    assert list(tmp_path.glob("*.tally")) == []


async def test_of_an_outbox_that_was_cut_nothing_is_taken_for_not_sent(tmp_path):
    for cut in (1, 10, len(opened_record(uuid7()))):  # within a record, and the whole of the last one
        folder = tmp_path / str(cut)
        dead = Outbox.open(folder, proxy_id=uuid7())
        for _ in range(3):
            dead.opened(uuid7(), KEY)
        await die(dead)
        [file] = logs(folder)
        os.truncate(file, file.stat().st_size - cut)
        assert await released_of(folder) == []


async def test_settlements_behind_the_last_opened_call_may_be_cut(tmp_path):
    dead = Outbox.open(tmp_path, proxy_id=(proxy_id := uuid7()))
    for request_id in (sent := sorted(uuid7() for _ in range(2))):
        dead.opened(request_id, KEY)
    [file] = logs(tmp_path)
    opened = file.stat().st_size
    dead.append(report(sent[0]), KEY)
    await die(dead)
    assert file.stat().st_size > opened
    os.truncate(file, opened)
    assert (await released_of(tmp_path))[:1] == [(proxy_id, sent)]


async def test_without_room_for_the_tally_nothing_is_taken_for_not_sent(tmp_path, monkeypatch):
    dead = Outbox.open(tmp_path, proxy_id=uuid7())
    dead.opened(uuid7(), KEY)

    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as broken:
        broken.setattr(outbox_tally.os, "pwrite", refuse)
        dead.opened(uuid7(), KEY)
    await die(dead)
    [file] = logs(tmp_path)
    os.truncate(file, file.stat().st_size - len(opened_record(uuid7())))
    assert await released_of(tmp_path) == []


async def test_after_a_reboot_or_without_a_tally_nothing_is_taken_for_not_sent(tmp_path, monkeypatch):
    for name in ("rebooted", "older"):
        dead = Outbox.open(tmp_path / name, proxy_id=uuid7())
        dead.opened(uuid7(), KEY)
        await die(dead)
    [tally] = (tmp_path / "older").glob("*.tally")
    tally.unlink()
    assert await released_of(tmp_path / "older") == []
    monkeypatch.setattr("services.proxy.outbox_tally.boot_id", lambda: "0e0b1c2d-0000-4000-8000-000000000000")
    assert await released_of(tmp_path / "rebooted") == []


async def test_an_orderly_end_leaves_no_tally(tmp_path):
    async with outbox_of(tmp_path, Books()) as outbox:
        outbox.opened(request_id := uuid7(), KEY)
        outbox.append(report(request_id), KEY)
    assert list(tmp_path.iterdir()) == []
