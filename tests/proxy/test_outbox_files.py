"""The records of the outbox, and who may touch a file."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.outbox_files import Kind, Segment, append_text, encode, groups, remove_unfinished, scan, segment_name

BODIES = st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=60)), max_size=6)
THREE = [encode(Kind.OPENED, b"first"), encode(Kind.SETTLEMENT, b"second"), encode(Kind.SETTLEMENT, b"third")]


@given(BODIES)
def test_what_is_written_is_read(bodies):
    records, damaged = scan(b"".join(encode(kind, body) for kind, body in bodies))
    assert [(record.kind, record.body) for record in records] == bodies
    assert damaged == []


@given(BODIES, st.binary(min_size=1, max_size=40))
def test_records_before_garbage_are_read_and_the_garbage_is_told(bodies, garbage):
    good = b"".join(encode(kind, body) for kind, body in bodies)
    records, damaged = scan(good + garbage)
    assert [(record.kind, record.body) for record in records] == bodies
    assert damaged == [(len(good), len(good) + len(garbage))]


@pytest.mark.parametrize("cut", range(len(THREE[2])))
def test_a_last_record_cut_anywhere_leaves_the_earlier_ones(cut):
    data = THREE[0] + THREE[1] + THREE[2][:cut]
    records, damaged = scan(data)
    assert [record.body for record in records] == [b"first", b"second"]
    assert damaged == ([(len(data) - cut, len(data))] if cut else [])


@pytest.mark.parametrize("position", range(sum(map(len, THREE))))
def test_a_flipped_byte_costs_its_own_record_and_no_other(position):
    data = bytearray(b"".join(THREE))
    data[position] ^= 0x40
    records, damaged = scan(bytes(data))
    hit = next(number for number in range(3) if position < sum(map(len, THREE[: number + 1])))
    assert [record.body for record in records] == [
        body for number, body in enumerate((b"first", b"second", b"third")) if number != hit
    ]
    assert damaged == [(sum(map(len, THREE[:hit])), sum(map(len, THREE[: hit + 1])))]


def test_a_file_of_zeros_holds_nothing():
    assert scan(bytes(1000)) == ([], [(0, 1000)])


def test_sixteen_mebibytes_of_garbage_are_read_in_a_second():
    records, _ = scan(os.urandom(16 << 20) + THREE[0])
    assert [record.body for record in records] == [b"first"]


def test_a_file_in_use_is_not_given_away(tmp_path):
    mine = Segment.create(tmp_path, "a.log")
    assert Segment.take(tmp_path / "a.log") is None
    mine.close()
    taken = Segment.take(tmp_path / "a.log")
    assert taken is not None
    assert Segment.take(tmp_path / "a.log") is None
    taken.close()


def test_a_file_that_was_removed_between_open_and_lock_is_not_taken(tmp_path, monkeypatch):
    Segment.create(tmp_path, "a.log").close()
    real_open = os.open

    def open_then_lose(path, *arguments):
        fd = real_open(path, *arguments)
        os.unlink(path)
        return fd

    monkeypatch.setattr(os, "open", open_then_lose)
    assert Segment.take(tmp_path / "a.log") is None


def test_a_file_is_readable_by_its_owner_alone(tmp_path):
    Segment.create(tmp_path, "a.log").close()
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o600
    append_text(tmp_path / "b.log", "x")
    assert (tmp_path / "b.log").stat().st_mode & 0o777 == 0o600


def test_files_are_grouped_by_who_wrote_them_and_counted_up(tmp_path):
    for number in (0, 1, 2, 10):
        Segment.create(tmp_path, segment_name("one", number)).close()
    Segment.create(tmp_path, "two.log").close()
    for other in ("refused-one.log", "one.log.corrupt", ".one.log.new", "notes.txt"):
        (tmp_path / other).touch()
    found = {stem: [path.name for path in paths] for stem, paths in groups(tmp_path).items()}
    assert found == {"one": ["one.log", "one.1.log", "one.2.log", "one.10.log"], "two": ["two.log"]}


def test_what_a_process_left_while_it_made_a_file_goes_when_it_is_old(tmp_path):
    young, old = tmp_path / ".young.log.new", tmp_path / ".old.log.new"
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    remove_unfinished(tmp_path)
    assert young.exists()
    assert not old.exists()


def test_a_synced_file_is_on_the_disk_with_its_name(tmp_path, monkeypatch):
    synced: list[str] = []

    def noting(what, real):
        def sync(fd):
            synced.append(f"{what} {os.readlink(f'/proc/self/fd/{fd}')}")
            real(fd)

        return sync

    monkeypatch.setattr(os, "fdatasync", noting("data of", os.fdatasync))
    monkeypatch.setattr(os, "fsync", noting("all of", os.fsync))
    segment = Segment.create(tmp_path, "a.log")
    segment.append(THREE[0])
    segment.sync()
    assert synced == [f"data of {tmp_path}/a.log", f"all of {tmp_path}"]
    segment.append(THREE[1])
    segment.sync()
    assert synced[2:] == [f"data of {tmp_path}/a.log"]  # its name is there already
    segment.close()
