"""The one thread that writes: whatever waits at one moment becomes one transaction.

A commit costs an fsync, so a batch of sixty calls costs little more than one. While a batch is being written the next one
gathers; nobody waits for company on an idle system.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from gateway.errors import DatabaseUnavailable
from gateway.storage.faults import CommitUnheard, RowLocked

_log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

_AGAIN = 0.05  # seconds
_BUSY = "the database is busy; nothing was changed, try again"


@dataclass(slots=True)
class _Job(Generic[Item]):
    items: Sequence[Item]
    deadline: float
    """Monotonic seconds after which nobody waits for it any more."""
    begun: bool = False
    future: Future[Any] = field(default_factory=Future)


@dataclass(slots=True)
class _Errand:
    run: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


class Writer(Generic[Item, Result]):
    """Takes batches of items from many threads and gives them, together, to `apply` on a thread of its own.

    apply: items -> one result each, in one transaction. It is called again with each job alone, then with each item alone,
    when it fails in a way that may be one item's fault, RowLocked among them; any other DatabaseUnavailable is everybody's.
    idle: called after each transaction; gives whether it is to be called again soon.
    """

    def __init__(
        self, apply: Callable[[Sequence[Item]], Sequence[Result]], *, idle: Callable[[], bool], most: int = 512
    ) -> None:
        self._apply = apply
        self._idle = idle
        self._most = most
        self._jobs: list[_Job[Item]] = []
        self._errands: list[_Errand] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, items: Sequence[Item], *, timeout: float) -> Sequence[Result]:
        """Has these items written; gives their results. Raises DatabaseUnavailable when it cannot be done in time.

        timeout: seconds. Items whose turn comes later are dropped unwritten; CommitUnheard: they are being written still.
        """
        job = _Job(items, time.monotonic() + timeout)
        self._put(self._jobs, job)
        try:
            return self._result(job.future, timeout)  # type: ignore[no-any-return] # futures are untyped across the threads
        except DatabaseUnavailable as error:
            if not job.begun:
                raise
            if job.future.done():
                return job.future.result()  # type: ignore[no-any-return] # as above
            raise CommitUnheard("the database is slow; ask again", retry_after=1.0) from error

    def run(self, errand: Callable[[], T], *, timeout: float = 30.0) -> T:
        """Runs a function on the writer's thread, between batches, one between two. It opens its own transaction."""
        work = _Errand(errand)
        self._put(self._errands, work)
        try:
            return self._result(work.future, timeout)  # type: ignore[no-any-return] # futures are untyped across the threads
        except DatabaseUnavailable:
            work.future.cancel()  # what is not begun is not done: whoever asks again must not have it done twice
            raise

    def close(self) -> None:
        """Writes what waits, then ends the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _put(self, queue: list[Any], work: Any) -> None:
        with self._wake:
            if self._closed:
                raise DatabaseUnavailable("the ledger is stopping; try again", retry_after=1.0)
            queue.append(work)
            self._wake.notify()

    def _result(self, future: Future[Any], timeout: float) -> Any:
        try:
            return future.result(timeout=timeout + 0.05)
        except FutureTimeoutError:
            raise DatabaseUnavailable(_BUSY, retry_after=1.0) from None

    def _loop(self) -> None:
        again = False
        while True:
            with self._wake:
                if again and not (self._jobs or self._errands or self._closed):
                    self._wake.wait(_AGAIN)
                while not (self._jobs or self._errands or self._closed or again):
                    self._wake.wait()
                if self._closed and not (self._jobs or self._errands):
                    return
                jobs, errands = self._take()
            if jobs:
                self._write(jobs)
            for work in errands:
                _finish(work.future, work.run)
            try:
                again = self._idle()
            except Exception:  # whatever it is, calls that come later are still to be decided
                again = False
                _log.exception("what the writer does between batches failed")

    def _take(self) -> tuple[list[_Job[Item]], list[_Errand]]:
        taken, size = 0, 0
        for job in self._jobs:
            if taken and size + len(job.items) > self._most:
                break
            taken, size = taken + 1, size + len(job.items)
        jobs, self._jobs = self._jobs[:taken], self._jobs[taken:]
        # One: each may wait for a row that somebody holds, and calls wait behind it.
        errands, self._errands = self._errands[:1], self._errands[1:]
        return jobs, errands

    def _write(self, jobs: list[_Job[Item]]) -> None:
        now = time.monotonic()
        for job in jobs:
            if job.deadline < now:
                job.future.set_exception(DatabaseUnavailable(_BUSY, retry_after=1.0))
        jobs = [job for job in jobs if job.deadline >= now]
        if not jobs:
            return
        for job in jobs:
            job.begun = True
        try:
            results = self._apply([item for job in jobs for item in job.items])
        except Exception as error:
            if isinstance(error, DatabaseUnavailable) and not isinstance(error, RowLocked):
                for job in jobs:
                    job.future.set_exception(error)
                return
            if len(jobs) == 1:
                self._write_singly(jobs[0], error)
                return
            for job in jobs:
                self._write([job])
        else:
            place = 0
            for job in jobs:
                job.future.set_result(results[place : place + len(job.items)])
                place += len(job.items)

    def _write_singly(self, job: _Job[Item], error: Exception) -> None:
        if len(job.items) == 1 and isinstance(error, RowLocked):
            job.future.set_result([error])  # its own answer: the database is well, and whoever asked may ask for others
            return
        if len(job.items) <= 1:
            job.future.set_exception(error)
            return
        results: list[Any] = []
        for item in job.items:
            if time.monotonic() > job.deadline:  # each item before it may have waited for a lock
                results.append(DatabaseUnavailable(_BUSY, retry_after=1.0))
                continue
            try:
                results.extend(self._apply([item]))
            except Exception as one:
                results.append(one)  # the item's own answer; its neighbours keep theirs
        job.future.set_result(results)


def _finish(future: Future[Any], run: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(run())
    except BaseException as error:
        future.set_exception(error)
