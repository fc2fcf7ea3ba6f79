"""The thread that writes: what it says to those who do not wait for the end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.errors import AuthUnavailable, DatabaseUnavailable
from gateway.storage.faults import CommitUnheard
from gateway.storage.writer import Writer


@pytest.fixture
def flowing():
    return threading.Event()


@pytest.fixture
def writer(flowing):
    def apply(items):
        flowing.wait(10)
        return items

    writer = Writer(apply, idle=lambda: False)
    yield writer
    flowing.set()
    writer.close()


def test_what_is_being_written_is_told_from_what_was_not_begun(writer, flowing):
    with pytest.raises(CommitUnheard) as unheard:
        writer.submit(["begun"], timeout=0.05)
    assert unheard.value.reason == AuthUnavailable.reason
    with pytest.raises(DatabaseUnavailable) as dropped:
        writer.submit(["waiting behind it"], timeout=0.05)
    assert not isinstance(dropped.value, CommitUnheard)
    flowing.set()
    assert writer.submit(["later"], timeout=5) == ["later"]


def test_a_fault_between_batches_ends_no_later_one(caplog):
    faults = [ZeroDivisionError("between batches")]

    def idle():
        if faults:
            raise faults.pop()
        return False

    writer = Writer(lambda items: items, idle=idle)
    assert [writer.submit([number], timeout=5) for number in range(2)] == [[0], [1]]
    writer.close()
    assert "between batches" in caplog.text


def gather(writer, flowing, *errands):
    """Has these errands wait, in order, behind a batch; gives what becomes of them."""
    with pytest.raises(CommitUnheard):
        writer.submit(["begun"], timeout=0.05)
    pool = ThreadPoolExecutor(len(errands))
    futures = []
    for count, errand in enumerate(errands, start=1):
        futures.append(pool.submit(writer.run, errand, timeout=10))
        until(lambda count=count: len(writer._errands) == count)
    pool.shutdown(wait=False)
    return futures


def until(holds):
    for _ in range(1_000):
        if holds():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it was never given to the writer")


def test_a_call_waits_for_one_errand_at_a_time(writer, flowing):
    """Each may wait for a row that somebody holds, and twenty of them would be longer than a call has."""
    told = []

    def call():
        writer.submit(["call"], timeout=10)
        told.append("call")

    def first():
        threading.Thread(target=call).start()
        until(lambda: writer._jobs)
        told.append("first")

    def second():
        until(lambda: "call" in told)
        told.append("second")

    futures = gather(writer, flowing, first, second)
    flowing.set()
    for future in futures:
        future.result(timeout=15)
    assert told == ["first", "call", "second"]


def test_a_writer_that_closes_runs_all_errands_that_wait(writer, flowing):
    told = []
    gather(writer, flowing, *(lambda number=number: told.append(number) for number in range(3)))
    flowing.set()
    writer.close()
    assert told == [0, 1, 2]


def test_an_errand_that_nobody_waits_for_any_more_is_not_run_later(writer, flowing):
    """Whoever was told that the database is busy asks again: what it counted must not be added twice."""
    ran = []
    with pytest.raises(CommitUnheard):
        writer.submit(["begun"], timeout=0.05)
    with pytest.raises(DatabaseUnavailable):
        writer.run(lambda: ran.append("first"), timeout=0.05)
    flowing.set()
    writer.run(lambda: ran.append("again"), timeout=5)
    assert ran == ["again"]
