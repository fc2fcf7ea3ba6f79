"""Adoption: what dead processes left in the outbox becomes settlements.

The same files give byte-identical settlements whoever reads them and however often, so two processes may not even notice that
both did: the ledger takes the same report twice as one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from gateway.process.logs import get_logger
from gateway.stubs.auth.v1.auth_pb2 import (
    OUTCOME_SETTLED,
    OUTCOME_SETTLED_AT_HOLD,
    USAGE_SOURCE_ESTIMATED,
    RecordUsageRequest,
    UsageItem,
)
from services.proxy import outbox_tally
from services.proxy.outbox_files import Kind, Record, Segment, groups, number_of, remove_unfinished, scan, stem_of

PROXY_DIED: Final = "proxy_died"
_log = get_logger(__name__)
_LAST_SECOND: Final = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Orphan:
    """A call whose process died before its settlement was acknowledged.

    report: the settlement, serialized.
    segment, offset: where the report stands as it is; None and 0: it was made up from what the file says.
    """

    request_id: str
    report: bytes
    segment: Segment | None
    offset: int


@dataclass(slots=True, eq=False)
class Group:
    """The files of one dead process, locked by us until all is settled.

    waiting: the calls whose settlement nobody has acknowledged yet; when it is empty the files can go.
    damaged: how many of the files were damaged.
    kept: damaged files whose damaged parts could not be copied; they are renamed instead of removed.
    whole_of: the process whose calls all stand here; empty: something may be missing.
    """

    segments: list[Segment]
    orphans: list[Orphan] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    damaged: int = 0
    kept: list[Segment] = field(default_factory=list)
    whole_of: str = ""

    def remove(self) -> None:
        """Takes the files away, the oldest first, so that no settlement goes before its `opened`. Raises OSError."""
        while self.segments:
            segment = self.segments[0]
            if segment in self.kept:
                segment.path.rename(_aside(segment.path))
            segment.remove()
            del self.segments[0]
            if not self.segments:
                tally = outbox_tally.path_of(segment.path.parent, stem_of(segment.path))
                tally.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlocks the files and leaves them to the next process."""
        for segment in self.segments:
            segment.close()


def adopt(directory: Path) -> list[Group]:
    """Locks and reads whatever nobody uses. Blocks on the disk: to be called in a thread. Raises OSError."""
    remove_unfinished(directory)
    adopted: list[Group] = []
    for stem, paths in groups(directory).items():
        try:
            group = _take(paths)
            if group is not None:
                _read(group)
                group.whole_of = _whole_of(group, directory, stem)
                adopted.append(group)
        except OSError as error:
            _log.warning("outbox_file_unreadable", stem=stem, error=str(error))
    return adopted


def progress_body(report: bytes, last_second: int) -> bytes:
    """The body of a progress record: the output tokens of the last second, then the serialized report as it would be now."""
    return _LAST_SECOND.pack(last_second) + report


def _whole_of(group: Group, directory: Path, stem: str) -> str:
    """The process whose calls all stand in these files; empty where they may have been cut, or the machine stopped since."""
    told = outbox_tally.read(directory, stem)
    last = group.segments[-1]
    if told is None or group.damaged or (number_of(last.path), last.size) < (told.number, told.size):
        return ""
    return told.proxy_id


def _take(paths: list[Path]) -> Group | None:
    """Locks the files of one process, the first one first: who has that one has them all; None: they are in use."""
    segments: list[Segment] = []
    try:
        for path in paths:
            segment = Segment.take(path)
            if segment is None:
                break
            segments.append(segment)
        else:
            return Group(segments)
    except BaseException:
        Group(segments).close()
        raise
    Group(segments).close()
    return None


def _read(group: Group) -> None:
    """Fills a group with its orphans."""
    states: dict[str, tuple[Record, Segment]] = {}
    for segment in group.segments:
        data = segment.read()
        records, damaged = scan(data)
        for record in records:
            _apply(states, record, segment)
        if damaged:
            group.damaged += 1
            _set_aside(group, segment, b"".join(data[start:end] for start, end in damaged))
    for request_id, (record, segment) in states.items():
        group.orphans.append(_orphan(request_id, record, segment))
        group.waiting.add(request_id)


def _apply(states: dict[str, tuple[Record, Segment]], record: Record, segment: Segment) -> None:
    if record.kind is Kind.ACKNOWLEDGED:
        for finished in record.body.decode("utf-8", "replace").split("\n"):
            states.pop(finished, None)
        return
    try:
        request_id = _request_id(record)
    except (DecodeError, struct.error, UnicodeDecodeError):
        _log.error("outbox_record_unreadable", file=segment.path.name, offset=record.offset)
        return
    known = states.get(request_id)
    # A call goes from opened over progress to its settlement; a copy that was carried forward must not lead back.
    if known is None or _RANK[record.kind] > _RANK[known[0].kind] or record.kind is known[0].kind is Kind.PROGRESS:
        states[request_id] = (record, segment)


_RANK: Final = {Kind.OPENED: 0, Kind.PROGRESS: 1, Kind.SETTLEMENT: 2}


def _request_id(record: Record) -> str:
    if record.kind is Kind.OPENED:
        return record.body.decode()
    if record.kind is Kind.PROGRESS:
        _LAST_SECOND.unpack_from(record.body)
        return RecordUsageRequest.FromString(record.body[_LAST_SECOND.size :]).request_id
    return RecordUsageRequest.FromString(record.body).request_id


def _orphan(request_id: str, record: Record, segment: Segment) -> Orphan:
    if record.kind is Kind.SETTLEMENT:
        return Orphan(request_id, record.body, segment, record.offset)
    if record.kind is Kind.PROGRESS:
        return Orphan(request_id, _settle_progress(record.body), None, 0)
    report = RecordUsageRequest(
        request_id=request_id, outcome=OUTCOME_SETTLED_AT_HOLD, source=USAGE_SOURCE_ESTIMATED, error_code=PROXY_DIED
    )
    return Orphan(request_id, report.SerializeToString(deterministic=True), None, 0)


def _settle_progress(body: bytes) -> bytes:
    """The progress noted last, and once more what its last second gave; the ledger charges at most the hold."""
    (last_second,) = _LAST_SECOND.unpack_from(body)
    report = RecordUsageRequest.FromString(body[_LAST_SECOND.size :])
    report.error_code = PROXY_DIED
    if report.outcome == OUTCOME_SETTLED_AT_HOLD:  # the provider's numbers were not believed: there is nothing to add to
        return report.SerializeToString(deterministic=True)
    report.outcome = OUTCOME_SETTLED
    report.source = USAGE_SOURCE_ESTIMATED
    output = next((item for item in report.usage if item.unit == "output"), None)
    if output is not None:
        output.count += last_second
    elif last_second:
        report.usage.append(UsageItem(unit="output", count=last_second))
    return report.SerializeToString(deterministic=True)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.corrupt")


def _set_aside(group: Group, segment: Segment, damaged: bytes) -> None:
    _log.error("outbox_file_damaged", file=segment.path.name, damaged_bytes=len(damaged), kept_as=_aside(segment.path).name)
    try:
        _aside(segment.path).write_bytes(damaged)
        _aside(segment.path).chmod(0o600)
    except OSError:
        group.kept.append(segment)
