"""The outbox on a disk that fails: nothing new is let through, nothing that is running is lost, and it heals by itself."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gateway.errors import OutboxUnavailable
from gateway.ids import uuid7
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.outbox import Outbox
from services.proxy.outbox_files import Segment, scan
from tests.proxy.outbox_harness import KEY, Books, eventually, logs, outbox_of, report


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("mounting needs rights that this process does not have")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leaves no byte free."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return ballast


async def test_a_full_disk_stops_new_calls_keeps_running_ones_and_heals(small_disk):
    books, registry = Books(), CollectorRegistry()
    folder = small_disk / "outbox"
    async with outbox_of(folder, books, registry=registry) as outbox:
        running = [uuid7() for _ in range(500)]
        for request_id in running:
            outbox.opened(request_id, KEY)
        ballast = fill(small_disk)
        books.away = True
        refused = 0
        for _ in range(200):
            try:
                outbox.opened(uuid7(), KEY)
            except OutboxUnavailable as error:
                assert error.retry_after == 1.0
                refused += 1
        assert refused >= 100  # the last page of the file may still have had room
        assert not outbox.writable
        assert registry.get_sample_value("gateway_proxy_outbox_unwritable") == 1
        for request_id in running:
            outbox.append(report(request_id), KEY)
        books.away = False
        await eventually(lambda: set(running) <= set(books.booked))  # sent although it could not be written
        await asyncio.sleep(1.2)
        assert not outbox.writable
        ballast.unlink()
        back = time.monotonic()
        await eventually(lambda: outbox.writable, 3.0)
        assert time.monotonic() - back < 2.5
        outbox.opened(request_id := uuid7(), KEY)
        outbox.append(report(request_id), KEY)
        await eventually(lambda: request_id in books.booked)
    assert books.conflicts == 0


async def test_what_was_kept_while_the_disk_was_full_is_on_file_afterwards(small_disk):
    books = Books()
    books.away = True
    folder = small_disk / "outbox"
    async with outbox_of(folder, books, drain=0.0) as outbox:
        running = [uuid7() for _ in range(300)]
        for request_id in running:
            outbox.opened(request_id, KEY)
        ballast = fill(small_disk)
        for request_id in running:
            outbox.append(report(request_id), KEY)
        assert not outbox.writable
        ballast.unlink()
        await eventually(lambda: outbox.writable, 3.0)
    for file in logs(folder):
        assert scan(file.read_bytes())[1] == []  # no half record is left of what did not fit
    books.away = False
    async with outbox_of(folder, books):
        await eventually(lambda: len(books.booked) == 300)
    assert {pb.RecordUsageRequest.FromString(raw).outcome for raw in books.booked.values()} == {pb.OUTCOME_SETTLED}


async def test_a_disk_that_is_full_from_the_start_is_waited_for(small_disk):
    (small_disk / "outbox").mkdir()
    ballast = fill(small_disk)
    books = Books()
    async with outbox_of(small_disk / "outbox", books) as outbox:
        with pytest.raises(OutboxUnavailable):
            for _ in range(200):
                outbox.opened(uuid7(), KEY)
        ballast.unlink()
        await eventually(lambda: outbox.writable, 3.0)


async def test_a_read_only_disk_is_told_at_the_start_and_survived_later(small_disk):
    books = Books()
    folder = small_disk / "outbox"
    remount = ["mount", "-o", "remount", str(small_disk)]
    async with outbox_of(folder, books) as outbox:
        # A descriptor that is open for writing keeps the kernel from it, as it would on a real disk; closed and opened anew
        # the file system is what it is after an error.
        outbox.opened(running := uuid7(), KEY)
        segment = outbox._journal._segments[0]
        writable, segment.fd = segment.fd, os.open(segment.path, os.O_RDONLY)
        os.close(writable)
        outbox._journal._tally.close(remove=False)
        outbox._journal._tally = None
        await asyncio.to_thread(subprocess.run, [*remount[:2], "remount,ro", str(small_disk)], check=True)
        with pytest.raises(OutboxUnavailable):
            outbox.opened(uuid7(), KEY)
        outbox.append(report(running), KEY)
        await eventually(lambda: running in books.booked)
        with pytest.raises(OutboxUnavailable, match="Read-only file system"):
            Outbox.open(small_disk / "another", proxy_id=uuid7())
        await asyncio.to_thread(subprocess.run, [*remount[:2], "remount,rw", str(small_disk)], check=True)
        segment.broken = True
        await eventually(lambda: outbox.writable, 3.0)
        outbox.opened(uuid7(), KEY)


async def test_a_limit_on_the_size_of_files_is_survived_in_a_new_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    books = Books()
    books.away = True
    async with outbox_of(tmp_path, books, drain=0.0) as outbox:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            calls = [uuid7() for _ in range(200)]
            for request_id in calls:
                outbox.append(report(request_id, usage_json="x" * 1000), KEY)
            assert outbox.writable  # each file that is full was followed by another one at once
            assert outbox._journal.files > 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(scan(file.read_bytes())[1] == [] for file in logs(tmp_path))
    books.away = False
    async with outbox_of(tmp_path, books):
        await eventually(lambda: len(books.booked) == 200)


async def test_a_write_that_went_half_way_leaves_no_half_record(tmp_path, monkeypatch):
    books = Books()
    books.away = True
    real = os.write
    async with outbox_of(tmp_path, books, drain=0.0) as outbox:
        outbox.append(report(first := uuid7()), KEY)
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
        outbox.append(report(second := uuid7()), KEY)
        assert not outbox.writable
        monkeypatch.undo()
        await eventually(lambda: outbox.writable, 3.0)
        outbox.append(report(third := uuid7()), KEY)
    assert all(scan(file.read_bytes())[1] == [] for file in logs(tmp_path))
    books.away = False
    async with outbox_of(tmp_path, books):
        await eventually(lambda: set(books.booked) == {first, second, third})


async def test_what_was_acknowledged_while_the_disk_refused_is_not_charged_again(tmp_path, monkeypatch):
    """Its file says only that it was opened, until the acknowledgement can be written too."""
    books = Books()

    def refuse(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    async with outbox_of(tmp_path, books) as outbox:
        outbox.opened(other := uuid7(), KEY)  # keeps the file
        outbox.opened(request_id := uuid7(), KEY)
        outbox.append(report(settled := uuid7()), KEY)
        monkeypatch.setattr(os, "write", refuse)
        outbox.append(report(request_id), KEY)
        await eventually(lambda: {settled, request_id} <= set(books.booked) and outbox.weight(KEY)[0] == 0)
        monkeypatch.undo()
        await eventually(lambda: outbox.writable, 3.0)
    async with outbox_of(tmp_path, books):
        await eventually(lambda: other in books.booked)
        await eventually(lambda: len(logs(tmp_path)) == 1)
    assert books.conflicts == books.repeats == 0


async def test_what_a_failed_sync_may_have_lost_is_written_again_into_a_new_file(tmp_path, monkeypatch):
    books = Books()
    books.away = True
    real = Segment.sync
    failed: list[Path] = []

    def sync(self):
        if not failed:
            failed.append(self.path)
            raise OSError(errno.EIO, "Input/output error")
        real(self)

    monkeypatch.setattr(Segment, "sync", sync)
    async with outbox_of(tmp_path, books, drain=0.0) as outbox:
        outbox.append(report(request_id := uuid7()), KEY)
        await eventually(lambda: not outbox.writable)
        await eventually(lambda: outbox.writable, 3.0)
    (file,) = [file for file in logs(tmp_path) if file != failed[0]]
    assert report(request_id).SerializeToString(deterministic=True) in file.read_bytes()


async def test_an_outbox_that_someone_removed_is_written_anew(tmp_path):
    folder = tmp_path / "outbox"
    books = Books()
    books.away = True
    async with outbox_of(folder, books, drain=0.0) as outbox:
        outbox.opened(opened := uuid7(), KEY)
        outbox.append(report(settled := uuid7()), KEY)
        shutil.rmtree(folder)
        await eventually(lambda: bool(logs(folder)) and outbox.writable, 5.0)
    books.away = False
    async with outbox_of(folder, books):
        await eventually(lambda: len(books.booked) == 2)
    assert books.report(opened).outcome == pb.OUTCOME_SETTLED_AT_HOLD
    assert books.report(settled) == report(settled)


async def test_what_is_refused_on_a_full_disk_is_moved_aside_when_there_is_room(small_disk):
    books, registry = Books(), CollectorRegistry()
    folder = small_disk / "outbox"
    async with outbox_of(folder, books, registry=registry) as outbox:
        request_id = uuid7()
        books.unknown = {request_id}
        outbox.opened(request_id, KEY)
        ballast = fill(small_disk)
        outbox.append(report(request_id), KEY)
        await asyncio.sleep(0.5)
        assert outbox.weight(KEY)[0] == 1
        ballast.unlink()
        await eventually(lambda: registry.get_sample_value("gateway_proxy_outbox_refused_total") == 1)
    assert request_id in next(folder.glob("refused-*.log")).read_text()


async def test_a_file_whose_sync_failed_is_given_up_with_all_that_it_alone_holds(tmp_path, monkeypatch):
    """The kernel tells of what it lost once: a second sync of the same file would succeed and mean nothing."""
    books = Books()
    books.away = True
    real = Segment.sync
    synced: list[Path] = []
    began, go_on = threading.Event(), threading.Event()

    def sync(self):
        synced.append(self.path)
        if len(synced) == 1:
            began.set()
            go_on.wait(5)
            raise OSError(errno.EIO, "Input/output error")
        real(self)

    monkeypatch.setattr(Segment, "sync", sync)
    async with outbox_of(tmp_path, books, drain=0.0) as outbox:
        outbox.opened(opened := uuid7(), KEY)
        outbox.append(report(before := uuid7()), KEY)
        await eventually(began.is_set)
        outbox.append(report(meanwhile := uuid7()), KEY)
        go_on.set()
        await eventually(lambda: not outbox.writable)
        await eventually(lambda: outbox.writable, 3.0)
        assert synced.count(synced[0]) == 1
    synced[0].unlink(missing_ok=True)  # as if nothing of it had reached the disk
    books.away = False
    async with outbox_of(tmp_path, books):
        await eventually(lambda: set(books.booked) == {opened, before, meanwhile})
    assert books.report(before) == report(before)
    assert books.report(meanwhile) == report(meanwhile)
    assert books.report(opened).outcome == pb.OUTCOME_SETTLED_AT_HOLD


async def test_a_write_that_the_file_refuses_goes_into_a_new_file_at_once(tmp_path, monkeypatch):
    books = Books()
    books.away = True
    real = os.write

    def write(fd, data):
        if fd == broken:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, data)

    async with outbox_of(tmp_path, books, drain=0.0) as outbox:
        outbox.opened(request_id := uuid7(), KEY)
        broken = outbox._journal._segments[0].fd
        monkeypatch.setattr(os, "write", write)
        outbox.append(report(request_id), KEY)
        assert outbox.writable
        await outbox.kept(request_id)
        monkeypatch.undo()
    books.away = False
    async with outbox_of(tmp_path, books):
        await eventually(lambda: request_id in books.booked)
    assert books.report(request_id) == report(request_id)


async def test_the_end_of_a_call_is_kept_by_the_ledger_where_the_disk_refuses_it(tmp_path, monkeypatch):
    books = Books()

    def refuse(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    async with outbox_of(tmp_path, books) as outbox:
        outbox.opened(request_id := uuid7(), KEY)
        outbox.opened(other := uuid7(), KEY)
        monkeypatch.setattr(os, "write", refuse)
        outbox.append(report(request_id), KEY)
        assert request_id not in books.booked
        await outbox.kept(request_id)
        assert request_id in books.booked
        books.away = True
        outbox.append(report(other), KEY)
        started = time.monotonic()
        await outbox.kept(other)  # nothing can keep it: its caller does not wait for ever
        assert 1.0 < time.monotonic() - started < 10.0
        books.away = False
        monkeypatch.undo()
