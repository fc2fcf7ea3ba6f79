"""The ledger: the one door through which money passes. `commit` for calls, the rest for what keeps their holds alive."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.admission import Admission, Admitted, BatchOutcome, Explained, Settled
from gateway.clock import Clock, to_text
from gateway.errors import DatabaseUnavailable, GatewayError
from gateway.storage import refusals
from gateway.storage.adoption import adopt, ask_for_scrubbing, asked_for_scrubbing, note_scrubbed
from gateway.storage.batch import Batch
from gateway.storage.batch_rows import AdoptFirst, BatchRows, add_totals, locked_places
from gateway.storage.database import Database
from gateway.storage.faults import RowLocked
from gateway.storage.prices import PriceBook
from gateway.storage.refusals import Counts, KeptRefusal
from gateway.storage.retention import prune_calls
from gateway.storage.routing import note_routing
from gateway.storage.writer import Writer
from gateway.usage import Report, Source, State

COMMIT_TIMEOUT = 2.0  # seconds that an item waits for its turn where its caller states no limit
MOST_OPEN = 1_000  # open calls that a proxy is asked about at once
_EXPIRE_AT_ONCE = 200  # rows, so that calls wait for one of the sweeper's transactions no longer than for one of their own


@dataclass(frozen=True, slots=True)
class Lease:
    """A call that an internal service has open, with the count of its renewals."""

    request_id: str
    beat: int


class Ledger:
    """Holds, charges and releases money; durable before it answers. Safe to call from many threads.

    clock: decides when periods begin and what is old. wall: decides when a token expires; None: the same.
    """

    def __init__(self, db: Database, *, token_key: bytes, clock: Clock, wall: Clock | None = None) -> None:
        self._db = db
        self._clock = clock
        self._wall = wall or clock
        self._token_key = token_key
        self._prices = PriceBook(db, clock)
        self._must_scrub = False
        self._failing = False  # whether the last batch could not be written
        self._routing = ""
        self._events: Counter[str] = Counter()
        self._events_lock = threading.Lock()
        self._writer: Writer[Report | Admission, Settled | Admitted | GatewayError] = Writer(self._apply, idle=self._idle)
        try:
            self._writer.run(self._look_for_plain_text)  # whoever was here before may have been killed right after adopting
        except DatabaseUnavailable:
            self._must_scrub = True  # nobody knows; to do it for nothing is harmless

    def commit(
        self, settlements: Sequence[Report], admissions: Sequence[Admission], *, timeout: float = COMMIT_TIMEOUT
    ) -> BatchOutcome:
        """Books the settlements, then decides the admissions, in one transaction with whatever else waits.

        timeout: seconds until nobody waits for the answer any more; what is not begun by then is not done.
        Gives one answer an item. Raises DatabaseUnavailable; then nothing of it was done, or it is known by its ids.
        """
        results = self._writer.submit([*settlements, *admissions], timeout=timeout)
        outcome = BatchOutcome()
        for place, result in enumerate(results):
            into: list[Any] = outcome.settlements if place < len(settlements) else outcome.admissions
            into.append(result)
        return outcome

    def explain(self, admission: Admission, *, timeout: float = COMMIT_TIMEOUT) -> Explained:
        """Decides a call as `commit` would at this moment, and says why; nothing is held, counted or written.

        admission: without a request_id; by `token_id` where that is not 0. timeout: seconds, as for `commit`.
        Raises NotFound for a token_id that is none, DatabaseUnavailable.
        """

        def look() -> Explained:
            try:
                return self._explain(admission, may_adopt=True)
            except AdoptFirst:
                self._adopt({admission.token_hash})
                return self._explain(admission, may_adopt=False)

        return self._writer.run(look, timeout=timeout)

    def beat(self, proxy_id: str, host: str, routing: str = "") -> None:
        """Notes that a proxy process is alive, and where it sends calls if that is not what was noted last."""
        now = to_text(self._clock.now())

        def note() -> None:
            with self._db.write():
                self._db.run(
                    "INSERT INTO proxies (id, host, beat, started_at, last_beat_at) VALUES (?, ?, 1, ?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET beat = proxies.beat + 1, last_beat_at = excluded.last_beat_at",
                    (proxy_id, host, now, now),
                )
                if routing and routing != self._routing:
                    note_routing(self._db, routing)
            self._routing = routing or self._routing
            self._look_for_plain_text()

        self._writer.run(note)

    def renew(self, request_ids: Sequence[str], identity: str) -> list[str]:
        """Renews the leases of open calls of an internal service; gives those that are still open."""

        def renew() -> list[str]:
            renewed = []
            with self._db.write():
                for request_id in sorted(request_ids):
                    where = "WHERE request_id = ? AND identity = ? AND state = 'admitted'"
                    if self._db.query(f"SELECT 1 FROM requests {where}", (request_id, identity)):
                        self._db.run(f"UPDATE requests SET lease_beat = lease_beat + 1 {where}", (request_id, identity))
                        renewed.append(request_id)
            return renewed

        return self._writer.run(renew)

    def beats(self) -> dict[str, int]:
        """The last beat of each proxy process that has open calls; 0 for one that never beat."""
        rows = self._db.query(
            "SELECT open.proxy_id, COALESCE(proxies.beat, 0) FROM"
            " (SELECT DISTINCT proxy_id FROM requests WHERE state = 'admitted' AND proxy_id IS NOT NULL) AS open"
            " LEFT JOIN proxies ON proxies.id = open.proxy_id"
        )
        return {proxy_id: int(beat) for proxy_id, beat in rows}

    def open_calls(self, proxy_id: str, *, admitted_before: str = "", among: Collection[str] = ()) -> list[str]:
        """The open calls of a proxy process, the oldest first.

        admitted_before: only those admitted before this moment, at most `MOST_OPEN`; empty: all. among: only these; empty: all.
        """
        sql, values = "SELECT request_id FROM requests WHERE state = 'admitted' AND proxy_id = ?", [proxy_id]
        if admitted_before:
            sql, values = f"{sql} AND admitted_at < ?", [*values, admitted_before]
        if among:
            sql, values = f"{sql} AND request_id IN ({','.join('?' * len(among))})", [*values, *among]
        most = f" LIMIT {MOST_OPEN}" if admitted_before else ""
        return [row[0] for row in self._db.query(f"{sql} ORDER BY request_id{most}", values)]

    def leases(self) -> list[Lease]:
        """The open calls of internal services."""
        rows = self._db.query(
            "SELECT request_id, lease_beat FROM requests WHERE state = 'admitted' AND proxy_id IS NULL ORDER BY request_id"
        )
        return [Lease(request_id, int(beat)) for request_id, beat in rows]

    def expire(self, *, proxy_id: str | None = None, request_ids: Collection[str] = ()) -> int:
        """Charges, provisionally, the holds of open calls that nobody will report; gives how many there were.

        proxy_id: all calls of this proxy process. request_ids: these calls.
        """
        expired = 0
        waiting = list(request_ids)
        while some := waiting[:_EXPIRE_AT_ONCE] if proxy_id is None else self._open_rows(proxy_id):
            waiting = waiting[_EXPIRE_AT_ONCE:]
            expired += self._writer.run(lambda some=some: self._expire(some))  # type: ignore[misc] # mypy cannot type the default
        return expired

    def add_denials(self, counts: Counts, kept: Sequence[KeptRefusal] = ()) -> None:
        """Adds refusals to their tables, in one transaction: how many there were of each kind, and single ones."""

        def add_them() -> None:
            with self._db.write():
                refusals.add(self._db, counts, kept)

        self._writer.run(add_them)

    def prune(self, request_ids: Sequence[str], before: datetime) -> int:
        """Deletes these calls where they are final and ended before this moment; gives how many. Their costs stay booked."""
        return self._writer.run(lambda: prune_calls(self._db, request_ids, before, self._clock.now()))

    def forget(self, *, tombstones_before: str, proxies_before: str) -> None:
        """Deletes tombstones and silent proxies of before these moments; neither is money."""

        def forget() -> None:
            with self._db.write():
                self._db.run("DELETE FROM tombstones WHERE created_at < ?", (tombstones_before,))
                self._db.run(
                    "DELETE FROM proxies WHERE last_beat_at < ? AND id NOT IN"
                    " (SELECT proxy_id FROM requests WHERE state = 'admitted' AND proxy_id IS NOT NULL)",
                    (proxies_before,),
                )

        self._writer.run(forget)

    def take_events(self) -> Counter[str]:
        """What happened since the last look that an operator wants counted."""
        with self._events_lock:
            events, self._events = self._events, Counter()
        return events

    def close(self) -> None:
        """Writes what waits, leaves the database's files tidy, and ends the writer's thread."""
        self._writer.run(lambda: self._db.tend(last=True))
        self._writer.close()

    def is_working(self) -> bool:
        """Whether calls can be decided now: the database answers, and takes writes again where the last batch failed.

        It is written to only then: a look a second must not be in the way of who writes by hand.
        """
        if not self._failing:
            return self._db.is_reachable()
        try:
            with self._db.write():  # a row is really written, as a full disk lets empty transactions pass
                self._db.run("UPDATE meta SET value = value WHERE key = 'token_key_fingerprint'")
        except DatabaseUnavailable:
            return False
        self._failing = False
        return True

    def _apply(self, items: Sequence[Report | Admission]) -> list[Settled | Admitted | GatewayError]:
        try:
            answers = self._apply_free(items)
        except DatabaseUnavailable as error:
            self._failing = not isinstance(error, RowLocked)
            raise
        self._failing = False
        return answers

    def _apply_free(self, items: Sequence[Report | Admission]) -> list[Settled | Admitted | GatewayError]:
        """Commits the items; those whose token somebody holds for too long are refused, and their neighbours are not."""
        try:
            return self._commit(items)
        except RowLocked as error:
            if len(items) == 1:
                raise
            locked = locked_places(self._db, items)
            if not locked:
                raise
            held_up: dict[int, Settled | Admitted | GatewayError] = dict.fromkeys(locked, error)
        free = [place for place in range(len(items)) if place not in locked]
        answers = dict(zip(free, self._commit([items[place] for place in free]), strict=True)) if free else {}
        answers |= held_up
        return [answers[place] for place in range(len(items))]

    def _commit(self, items: Sequence[Report | Admission]) -> list[Settled | Admitted | GatewayError]:
        # Settlements before admissions over the whole transaction: they give money back.
        order = sorted(range(len(items)), key=lambda place: isinstance(items[place], Admission))
        settlements = [item for item in items if isinstance(item, Report)]
        admissions = [item for item in items if isinstance(item, Admission)]
        try:
            outcome = self._run_batch(settlements, admissions)
        except AdoptFirst:
            self._adopt({admission.token_hash for admission in admissions})
            outcome = self._run_batch(settlements, admissions, may_adopt=False)
        if outcome.events:
            with self._events_lock:
                self._events += outcome.events
        answers: list[Settled | Admitted | GatewayError | None] = [None] * len(items)
        for place, answer in zip(order, [*outcome.settlements, *outcome.admissions], strict=True):
            answers[place] = answer
        return [answer for answer in answers if answer is not None]

    def _run_batch(
        self, settlements: Sequence[Report], admissions: Sequence[Admission], *, may_adopt: bool = True
    ) -> BatchOutcome:
        with self._db.write():
            now = self._clock.now()
            rows = BatchRows(self._db, now, may_adopt=may_adopt)
            return Batch(rows, self._prices, now, wall=self._wall.now()).run(settlements, admissions)

    def _explain(self, admission: Admission, *, may_adopt: bool) -> Explained:
        with self._db.write():
            now = self._clock.now()
            rows = BatchRows(self._db, now, may_adopt=may_adopt)
            return Batch(rows, self._prices, now, wall=self._wall.now()).explain(admission)

    def _adopt(self, wanted: Collection[str]) -> None:
        """Makes tokens of what a person wrote, and scrubs the plain text before an answer, if nobody is in the way.

        wanted: the hashes that are asked for; rows of other tokens are left for later while somebody holds them.
        """
        with self._db.write():
            adopted = adopt(self._db, self._token_key, to_text(self._clock.now()), wanted=wanted)
            if adopted:
                ask_for_scrubbing(self._db)  # should this process be killed now, the next one does it
        if adopted:
            with self._events_lock:
                self._events["adopted"] += adopted
            self._must_scrub = True
            self._idle()

    def _open_rows(self, proxy_id: str) -> list[str]:
        rows = self._db.query(
            "SELECT request_id FROM requests WHERE state = 'admitted' AND proxy_id = ? LIMIT ?", (proxy_id, _EXPIRE_AT_ONCE)
        )
        return [row[0] for row in rows]

    def _expire(self, request_ids: Sequence[str]) -> int:
        """Gives how many of these were open still."""
        now = to_text(self._clock.now())
        totals: defaultdict[tuple[int, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        with self._db.write():
            rows = self._lock_open_rows(request_ids)
            with self._db.together():
                for request_id, token_id, held, admitted_at, model in rows:
                    self._db.run(
                        "UPDATE requests SET state = ?, cost_nanos = ?, usage_source = ?, settled_at = ?,"
                        " error_code = 'lease_expired' WHERE request_id = ?",
                        (State.EXPIRED, held, Source.ESTIMATED, now, request_id),
                    )
                    self._db.run(
                        "UPDATE client_tokens SET held_nanos = held_nanos - ?, open_calls = open_calls - 1,"
                        " total_spent_nanos = total_spent_nanos + ?, period_spent_nanos = period_spent_nanos"
                        " + CASE WHEN COALESCE(period_start, '') <= ? THEN ? ELSE 0 END WHERE id = ?",
                        (held, held, admitted_at, held, token_id),
                    )
                    totals[token_id, admitted_at[:10], model][3] += held
                add_totals(self._db, totals)
        return len(rows)

    def _lock_open_rows(self, request_ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """The calls of these that are still open: locked as a batch locks them, tokens first."""
        marks = ",".join("?" * len(request_ids))
        if self._db.locking:
            self._db.query(
                "SELECT id FROM client_tokens WHERE id IN"
                f" (SELECT token_id FROM requests WHERE request_id IN ({marks})) ORDER BY id{self._db.locking}",
                request_ids,
            )
            self._db.query(
                f"SELECT request_id FROM requests WHERE request_id IN ({marks}) ORDER BY request_id{self._db.locking}",
                request_ids,
            )
        return self._db.query(
            "SELECT request_id, token_id, held_nanos, admitted_at, request_model FROM requests"
            f" WHERE request_id IN ({marks}) AND state = 'admitted' ORDER BY request_id",
            request_ids,
        )

    def _idle(self) -> bool:
        """Between batches, on the writer's thread, which alone tends the database. Gives whether a scrubbing is still owed."""
        if not self._must_scrub:
            self._db.tend()
            return False
        try:
            asked = asked_for_scrubbing(self._db)
            if self._db.scrub():
                self._must_scrub = False
                if asked is not None:
                    with self._db.write():
                        note_scrubbed(self._db, asked)
        except DatabaseUnavailable:
            return True
        return self._must_scrub

    def _look_for_plain_text(self) -> None:
        self._must_scrub = self._must_scrub or asked_for_scrubbing(self._db) is not None
