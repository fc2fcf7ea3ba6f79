"""The outbox: usage that the ledger has not acknowledged yet, on file before a caller has the whole answer.

`journal.py` keeps this process's files, `adoption.py` reads those of dead ones, `settling.py` decides when to send. What the
files hold is no secret: which token a call belongs to is known in memory only, by a hash of the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from google.protobuf.json_format import MessageToDict
from prometheus_client import CollectorRegistry

from gateway.clock import to_text
from gateway.errors import GatewayError, Internal, InvalidArgument, OutboxUnavailable, RequestTooLarge
from gateway.process.logs import get_logger
from gateway.process.tasks import survives
from gateway.stubs.auth.v1.auth_pb2 import (
    OUTCOME_RELEASED,
    OUTCOME_SETTLED_AT_HOLD,
    USAGE_SOURCE_ESTIMATED,
    USAGE_SOURCE_NONE,
    ItemError,
    RecordUsageRequest,
    SettlementResult,
)
from services.proxy.adoption import Group, adopt, progress_body
from services.proxy.journal import SEGMENT_BYTES, Journal, describe
from services.proxy.outbox_files import Kind, Segment, append_text
from services.proxy.outbox_metrics import OutboxMetrics
from services.proxy.settling import Settler

ADOPTION_INTERVAL: Final = 30.0
UNSENT_FOR: Final = 90.0
"""Seconds for which a dead process's calls that were never sent are released: auth, were it stopped, may admit some yet."""
UNSENT_EVERY: Final = 2.0
MOST_SENT: Final = 10_000
SETTLEMENTS_PER_BATCH: Final = 256
BYTES_PER_BATCH: Final = 768 * 1024  # of the 1 MiB that a batch may have; the rest is for validations and framing
KEEPING: Final = 2.0
"""Seconds that the end of an answer waits for its settlement, where it can neither be written nor sent."""
_KEPT_AGAIN: Final = 0.02
BODIES_IN_MEMORY: Final = 100_000
# What passes, of gRPC's codes: away; or something of auth's own that nobody foresaw (a table that is missing for the moment,
# a right that was taken away), which says nothing about the report. A report leaves only when it is refused itself.
_PASSING: Final = frozenset({0, 2, 13, 14})
_INVALID: Final = 3  # INVALID_ARGUMENT: what the report says is at fault, and not what it is about
_NO_KEY: Final = b""

Release = Callable[[str, Sequence[str]], Awaitable[None]]
Send = Callable[[list[RecordUsageRequest]], Awaitable[list[SettlementResult]]]
_log = get_logger(__name__)


def token_key(secret: str) -> bytes:
    """What the outbox calls a client token: 16 bytes of a hash, kept in memory only."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()[:16]


@dataclass(slots=True, eq=False)
class _Call:
    """A call that the ledger has not acknowledged as finished.

    body: that of the record that says where it stands, `length` bytes long; None: it is read at `place`.
    flights: how many requests are on their way that carry its settlement.
    output, elapsed_ms: output tokens and duration at its last progress.
    since: when its settlement came, in monotonic seconds.
    """

    request_id: str
    token_key: bytes
    kind: Kind = Kind.OPENED
    body: bytes | None = None
    place: tuple[Segment, int] | None = None
    length: int = 0
    flights: int = 0
    output: int = 0
    elapsed_ms: int = field(default=-1)
    since: float = 0.0
    replaced: bool = False
    """Whether the ledger refused its settlement for what it says, and a plain one stands in its place."""


class Outbox:
    """Takes settlements, keeps them until they are acknowledged, and sends them.

    To be used on the event loop only. Nothing here waits for the disk but `open` and `close`.
    """

    def __init__(self, directory: Path, *, proxy_id: str, registry: CollectorRegistry | None, segment_bytes: int) -> None:
        self._directory = directory
        self._calls: dict[str, _Call] = {}
        self._by_token: dict[bytes, dict[str, _Call]] = {}
        self._pending = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._groups: list[Group] = []
        self._group_done = asyncio.Event()
        self._closing = False
        self._journal = Journal(directory, proxy_id, snapshot=self._snapshot, segment_bytes=segment_bytes)
        self._settler = Settler(self._deliver)
        self._send: Send | None = None
        self._release: Release | None = None
        self._unsent: dict[str, tuple[list[str], float]] = {}  # by dead process: what it sent, and until when it is told
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics = OutboxMetrics(
            registry or CollectorRegistry(),
            pending=lambda: self._pending,
            oldest=self._oldest,
            files=lambda: self._journal.files + sum(len(group.segments) for group in self._groups),
            size=lambda: self._journal.size + sum(segment.size for group in self._groups for segment in group.segments),
            unwritable=lambda: not self.writable,
        )

    @classmethod
    def open(
        cls,
        directory: Path | str,
        *,
        proxy_id: str,
        registry: CollectorRegistry | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Self:
        """Makes this process's file.

        directory: made when it is not there, for its owner alone.
        proxy_id: names the file.
        registry: where the metrics go; None: nowhere.
        segment_bytes: the length from which on a file is continued in a new one.
        Raises OutboxUnavailable when the directory cannot be written to.
        """
        outbox = cls(Path(directory), proxy_id=proxy_id, registry=registry, segment_bytes=segment_bytes)
        try:
            outbox._journal.open()
        except OSError as error:
            reason = f"the outbox {directory} cannot be written to ({describe(error)})"
            raise OutboxUnavailable(f"{reason}: give the proxy a directory that it may write to") from error
        return outbox

    def start(self, send: Send, release: Release | None = None) -> None:
        """Starts sending, syncing and adopting; needs the running loop.

        release: has the ledger release what a dead process, given by its id, had admitted and is not among the calls given.

        send: gives settlements to the ledger, at most 256, and returns one result for each in order; raises GatewayError when
        the ledger did not answer.
        """
        self._send = send
        self._release = release
        self._journal.start()
        self._settler.start()
        self._tasks = [asyncio.create_task(self._keep_adopting()), asyncio.create_task(self._keep_releasing())]

    async def close(self, drain: float) -> None:
        """Sends what is pending for at most `drain` seconds; what is left stays on file for the next process."""
        self._closing = True
        self._group_done.set()
        await asyncio.gather(*self._tasks)  # a thread that reads or removes files cannot be called off
        if self._send is not None:
            await self._settler.drain(self._empty, drain)
        await self._settler.close()
        await self._journal.close()
        await self._drop_groups()
        for group in self._groups:
            group.close()

    @property
    def writable(self) -> bool:
        """Whether a call that is made now could be written down."""
        return self._journal.writable

    def knows(self, request_id: str) -> bool:
        """Whether a call is open here, or its settlement is still to be acknowledged."""
        return request_id in self._calls

    # -- what a call reports -----------------------------------------------------------------------------------------------

    def opened(self, request_id: str, token_key: bytes) -> None:
        """Notes that a call may go upstream; to be called before the first byte does.

        token_key: as `token_key()` makes it.
        Raises OutboxUnavailable: the call must not be made.
        """
        if request_id in self._calls:
            return
        body = request_id.encode()
        if self.writable:
            self._calls[request_id] = _Call(request_id, token_key, body=body, length=len(body))
            if self._journal.record(request_id, Kind.OPENED, body):
                return
            del self._calls[request_id]
        raise OutboxUnavailable("usage cannot be written down at the moment, so no call is made; try again", retry_after=1.0)

    def progress(self, request_id: str, usage: RecordUsageRequest) -> None:
        """Notes how far a stream is, once a second.

        usage: the settlement as it would be now, the duration included; source ESTIMATED.
        Does nothing for a call that is not open.
        """
        call = self._calls.get(request_id)
        if call is None or call.kind is Kind.SETTLEMENT:
            return
        call.kind = Kind.PROGRESS
        call.body = progress_body(usage.SerializeToString(deterministic=True), _last_second(call, usage))
        call.length = len(call.body)
        self._journal.record(request_id, Kind.PROGRESS, call.body)

    def append(self, settlement: RecordUsageRequest, token_key: bytes) -> None:
        """Takes how a call ended, once; what comes later for the same call is dropped.

        Never raises: what the disk refuses is kept in memory, sent all the same, and written when the disk is well again.
        """
        request_id = settlement.request_id
        call = self._calls.get(request_id)
        if call is None:
            call = self._calls[request_id] = _Call(request_id, token_key)
        elif call.kind is Kind.SETTLEMENT:
            _log.warning("settlement_repeated", request_id=request_id)
            return
        call.token_key = token_key
        self._set_settlement(call, settlement.SerializeToString(deterministic=True))
        self._journal.record(request_id, Kind.SETTLEMENT, call.body or b"")
        self._settler.push(request_id)

    async def kept(self, request_id: str) -> None:
        """Waits until how a call ended is on file or with the ledger, at most `KEEPING` seconds.

        To be called before its caller has the end of the answer. Returns at once unless the disk refuses to write.
        """
        until = time.monotonic() + KEEPING
        while time.monotonic() < until:
            if request_id not in self._calls or self._journal.is_written(request_id):
                return
            await asyncio.sleep(_KEPT_AGAIN)

    # -- what is sent ------------------------------------------------------------------------------------------------------

    def weight(self, token_key: bytes) -> tuple[int, int]:
        """How many settlements of a token are pending, and their size in bytes."""
        calls = self._by_token.get(token_key)
        return (len(calls), sum(call.length + 8 for call in calls.values())) if calls else (0, 0)

    def pending(self, token_keys: Collection[bytes], limit: int = SETTLEMENTS_PER_BATCH) -> list[RecordUsageRequest]:
        """The settlements that must travel with the next validation of these tokens, those in flight elsewhere included.

        At most `limit` and 768 KiB, the oldest of each token first. Each list must come back by `acknowledged` or `failed`.
        """
        taken: list[RecordUsageRequest] = []
        size = 0
        for key in token_keys:
            for call in self._by_token.get(key, {}).values():
                size += call.length + 8
                if len(taken) >= limit or size > BYTES_PER_BATCH:
                    return taken
                taken.append(self._take(call))
        return taken

    def acknowledged(self, settlements: Sequence[RecordUsageRequest], results: Sequence[SettlementResult]) -> None:
        """Takes the ledger's answers, one a settlement in the same order."""
        finished: list[str] = []
        refused: list[tuple[_Call, ItemError]] = []
        for settlement, result in zip(settlements, results, strict=True):
            call = self._calls.get(settlement.request_id)
            if call is None:  # another request carried it too and was answered first
                continue
            call.flights -= 1
            if result.WhichOneof("result") == "response":
                finished.append(call.request_id)
            elif result.error.code in _PASSING:
                self._settler.push(call.request_id, again=True)
            elif result.error.code == _INVALID and not call.replaced:
                self._replace(call, result.error)
            else:
                refused.append((call, result.error))
        if refused:
            finished += self._refuse(refused)
        self._finish(finished)

    def failed(self, settlements: Sequence[RecordUsageRequest]) -> None:
        """Notes that a request did not come back: what it carried is sent again."""
        for settlement in settlements:
            call = self._calls.get(settlement.request_id)
            if call is not None:
                call.flights -= 1
                self._settler.push(call.request_id, again=True)

    async def _deliver(self, request_ids: Iterator[str]) -> int:
        """Sends those of these calls that are not on their way already; returns how many. Raises GatewayError."""
        settlements: list[RecordUsageRequest] = []
        size = 0
        for request_id in request_ids:
            call = self._calls.get(request_id)
            if call is None or call.kind is not Kind.SETTLEMENT or call.flights:
                continue
            try:
                settlements.append(self._take(call))
            except OSError as error:  # it stands on the disk alone, and that cannot be read now
                _log.warning("settlement_unreadable", request_id=request_id, error=describe(error))
                self._settler.push(request_id, again=True)
                continue
            size += call.length + 8
            if size > BYTES_PER_BATCH:
                break
        if not settlements or self._send is None:
            return 0
        try:
            results = await self._results(settlements)
        except BaseException:
            self.failed(settlements)
            raise
        self.acknowledged(settlements, results)
        return len(settlements)

    async def _results(self, settlements: list[RecordUsageRequest]) -> list[SettlementResult]:
        """The ledger's answers; a batch that it cannot read is sent one by one, so that one bad report holds up no other."""
        assert self._send is not None
        try:
            results = await self._send(settlements)
        except (InvalidArgument, RequestTooLarge) as error:
            if len(settlements) == 1:
                return [SettlementResult(error=ItemError(code=3, reason=error.reason, message=error.message))]
            return [(await self._results([settlement]))[0] for settlement in settlements]
        if len(results) != len(settlements):
            raise Internal(f"the ledger gave {len(results)} answers to {len(settlements)} settlements")
        return results

    def _take(self, call: _Call) -> RecordUsageRequest:
        settlement = RecordUsageRequest.FromString(self._body(call))
        call.flights += 1
        return settlement

    def _body(self, call: _Call) -> bytes:
        if call.body is not None:
            return call.body
        assert call.place is not None
        segment, offset = call.place
        return segment.read(offset, call.length)

    # -- the states of calls -----------------------------------------------------------------------------------------------

    def _snapshot(self, request_id: str) -> tuple[Kind, bytes] | None:
        call = self._calls.get(request_id)
        return None if call is None else (call.kind, self._body(call))

    def _set_settlement(self, call: _Call, body: bytes) -> None:
        call.kind, call.body, call.length, call.since = Kind.SETTLEMENT, body, len(body), time.monotonic()
        if call.token_key != _NO_KEY:
            self._by_token.setdefault(call.token_key, {})[call.request_id] = call
        self._pending += 1
        self._empty.clear()

    def _oldest(self) -> float:
        """Seconds for which the oldest settlement has been waiting. For any thread: one look at the table is of one piece."""
        if not self._pending:
            return 0.0
        waiting = [call.since for call in list(self._calls.values()) if call.kind is Kind.SETTLEMENT]
        return time.monotonic() - min(waiting) if waiting else 0.0

    def _finish(self, request_ids: Sequence[str]) -> None:
        if not request_ids:
            return
        for request_id in request_ids:
            call = self._calls.pop(request_id, None)
            if call is None:
                continue
            self._pending -= 1
            if (calls := self._by_token.get(call.token_key)) is not None:
                calls.pop(request_id, None)
                if not calls:
                    del self._by_token[call.token_key]
        if not self._pending:
            self._empty.set()
        self._journal.finish(request_ids)
        for group in self._groups:
            group.waiting.difference_update(request_ids)
            if not group.waiting:
                self._group_done.set()

    def _refuse(self, refused: Sequence[tuple[_Call, ItemError]]) -> list[str]:
        """Moves aside what the ledger will never take; returns the calls that are done with."""
        lines = []
        for call, error in refused:
            report = RecordUsageRequest.FromString(self._body(call))
            line = {"at": to_text(datetime.now(UTC)), "code": error.code, "reason": error.reason, "message": error.message}
            lines.append(json.dumps(line | {"report": MessageToDict(report, preserving_proto_field_name=True)}) + "\n")
            _log.warning("settlement_refused", request_id=call.request_id, code=error.code, reason=error.reason)
        try:
            append_text(self._directory / f"refused-{self._journal.stem}.log", "".join(lines))
        except OSError as error:
            _log.warning("settlement_not_moved_aside", error=describe(error))
            for call, _ in refused:  # it stays pending, is refused again, and moved aside when the disk is well
                self._settler.push(call.request_id, again=True)
            return []
        self._metrics.refused.inc(len(refused))
        return [call.request_id for call, _ in refused]

    def _replace(self, call: _Call, error: ItemError) -> None:
        """Moves aside a settlement whose content the ledger will never take, and ends the call by a plain one.

        What was not served is released, what was is charged at the hold: otherwise the hold would last as long as this process.
        """
        refused = RecordUsageRequest.FromString(self._body(call))
        self._refuse([(call, error)])
        plain = RecordUsageRequest(request_id=call.request_id, error_code="settlement_refused", source=USAGE_SOURCE_ESTIMATED)
        plain.outcome = OUTCOME_SETTLED_AT_HOLD
        if refused.outcome == OUTCOME_RELEASED:
            plain.outcome, plain.source = OUTCOME_RELEASED, USAGE_SOURCE_NONE
        call.replaced = True
        call.body = plain.SerializeToString(deterministic=True)
        call.length, call.place = len(call.body), None
        self._journal.record(call.request_id, Kind.SETTLEMENT, call.body)
        self._settler.push(call.request_id)

    # -- adoption ----------------------------------------------------------------------------------------------------------

    @survives
    async def _keep_adopting(self) -> None:
        while not self._closing:
            started = time.monotonic()
            try:
                await self._adopt()
            except OSError as error:
                _log.warning("outbox_not_adopted", error=describe(error))
            while not self._closing and (left := started + ADOPTION_INTERVAL - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._group_done.wait()
                await self._drop_groups()

    async def _adopt(self) -> None:
        for group in await asyncio.to_thread(adopt, self._directory):
            self._groups.append(group)
            self._metrics.corrupt.inc(group.damaged)
            sent = [orphan.request_id for orphan in group.orphans]
            if group.whole_of and len(sent) <= MOST_SENT:
                self._unsent[group.whole_of] = (sent, time.monotonic() + UNSENT_FOR)
            if group.orphans:
                _log.info("outbox_adopted", file=group.segments[0].path.name, calls=len(group.orphans))
            for number, orphan in enumerate(group.orphans):
                if orphan.request_id not in self._calls:
                    call = self._calls[orphan.request_id] = _Call(orphan.request_id, _NO_KEY)
                    self._set_settlement(call, orphan.report)
                    if orphan.segment is not None and self._pending > BODIES_IN_MEMORY:
                        call.place, call.body = (orphan.segment, orphan.offset), None
                    self._settler.push(orphan.request_id)
                if number % 1000 == 999:
                    await asyncio.sleep(0)
            group.orphans.clear()
        await self._drop_groups()

    @survives
    async def _keep_releasing(self) -> None:
        """Has the ledger release what dead processes never sent: their files are whole, and do not name it."""
        while not self._closing:
            for proxy_id, (sent, until) in list(self._unsent.items()):
                try:
                    if self._release is not None:
                        await self._release(proxy_id, sent)
                except GatewayError as error:  # auth is away, or too old to know what is asked: the lease ends those calls
                    _log.debug("unsent_calls_not_released", reason=error.reason)
                if time.monotonic() > until:
                    del self._unsent[proxy_id]
            await asyncio.sleep(UNSENT_EVERY if self._unsent else 0.2)

    async def _drop_groups(self) -> None:
        """Removes the files of dead processes of which everything is acknowledged."""
        self._group_done.clear()
        for group in [group for group in self._groups if not group.waiting]:
            self._groups.remove(group)
            try:
                await asyncio.to_thread(group.remove)
            except OSError as error:
                self._groups.append(group)
                _log.warning("outbox_file_not_removed", error=describe(error))


def _last_second(call: _Call, usage: RecordUsageRequest) -> int:
    """What a stream gave in its last second, in output tokens: since the progress noted before, brought up to a second."""
    output = next((item.count for item in usage.usage if item.unit == "output"), 0)
    since = call.elapsed_ms if call.elapsed_ms >= 0 else usage.ttft_ms
    grown, elapsed = max(0, output - call.output), usage.duration_ms - since
    call.output, call.elapsed_ms = output, usage.duration_ms
    # Below a tenth of a second a burst would be blown up without measure.
    return -(-grown * 1000 // max(elapsed, 100)) if 0 < elapsed < 1000 else grown
