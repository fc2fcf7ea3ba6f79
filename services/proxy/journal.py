"""The journal: what this process appends to the outbox, kept bounded, synced, and brought back after the disk failed.

The event loop appends; syncs, probes and removals run on one thread of their own, as a disk may take its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from gateway.ids import uuid7
from gateway.process.logs import get_logger
from gateway.process.tasks import survives
from services.proxy.outbox_files import Kind, Segment, encode, probe, segment_name
from services.proxy.outbox_tally import Tally

SEGMENT_BYTES: Final = 16 * 1024 * 1024
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_BAD_FILE: Final = frozenset({errno.EFBIG, errno.EIO})
SYNC_INTERVAL: Final = 0.2
CARE_INTERVAL: Final = 1.0
_MANY_SEGMENTS: Final = 3
_FEW_CALLS: Final = 4096  # of the 40,000 or so that fill a file: so few are worth copying to get rid of the rest
_CHUNK: Final = 64 * 1024  # appended at once when much is to be written: a fraction of a millisecond of the event loop

_log = get_logger(__name__)


class Journal:
    """The files of one process: the last one is appended to, the others wait until nobody needs them.

    snapshot: the record that says where a call stands now; None for one that is finished.
    writable: False from the first write that the disk refused until a probe and everything kept meanwhile is written.
    """

    def __init__(
        self,
        directory: Path,
        stem: str,
        *,
        snapshot: Callable[[str], tuple[Kind, bytes] | None],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.writable = True
        self.stem = stem
        self._proxy_id = stem
        self._tally: Tally | None = None
        self._directory = directory
        self._snapshot = snapshot
        self._segment_bytes = segment_bytes
        self._segments: list[Segment] = []
        self._made = 0
        self._homes: dict[str, Segment] = {}
        self._unwritten: dict[str, None] = {}
        self._dirty = asyncio.Event()
        self._failed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "outbox")
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Makes the first file; on a full disk, as soon as there is room. Raises OSError for any other reason."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (self._directory / segment_name(self.stem, 0)).exists():
                self.stem = uuid7()
            self._rotate()
            self._tally = Tally(self._directory, self.stem, self._proxy_id)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._fail(error)

    def start(self) -> None:
        """Starts syncing and caring; needs the running loop."""
        self._tasks = [asyncio.create_task(self._keep_synced()), asyncio.create_task(self._keep_well())]

    async def close(self) -> None:
        """Syncs and unlocks. With a call in them that is not finished the files stay, for the next process to adopt."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._on_thread(lambda: None)  # a sync that has begun keeps the lock of its file, closed or not
        if any(self._snapshot(request_id) for request_id in self._unwritten):
            await self._recover()
        if self._homes:
            await self._sync()
        else:
            await self._on_thread(self._remove, self._segments)
        if self._tally is not None:
            self._tally.close(remove=not self._homes)
        for segment in self._segments:
            segment.close()
        self._segments = []
        self._thread.shutdown(wait=False)

    @property
    def files(self) -> int:
        """How many files there are."""
        return len(self._segments)

    @property
    def size(self) -> int:
        """The length of all files in bytes."""
        return sum(segment.size for segment in self._segments)

    def record(self, request_id: str, kind: Kind, body: bytes) -> bool:
        """Appends a record; False: the disk refuses, and where the call stands is written when that is over."""
        if self.writable:
            data = encode(kind, body)
            try:
                try:
                    segment = self._append(data, opens=kind is Kind.OPENED)
                except OSError:
                    if not self._segments or not self._segments[-1].broken:
                        raise
                    segment = self._append(data, opens=kind is Kind.OPENED)  # the file was at fault: a new one may do
            except OSError as error:
                self._fail(error)
            else:
                self._settle_in(request_id, kind, segment)
                return True
        self._unwritten[request_id] = None
        return False

    def is_written(self, request_id: str) -> bool:
        """Whether the file says where a call stands."""
        return request_id not in self._unwritten

    def finish(self, request_ids: Iterable[str]) -> None:
        """Notes that these calls are finished; those of other processes' files are none of ours."""
        ours = [request_id for request_id in request_ids if request_id in self._homes or request_id in self._unwritten]
        for request_id in ours:
            if (home := self._homes.pop(request_id, None)) is not None:
                home.live.discard(request_id)
        if not ours:
            return
        if self.writable:
            try:
                self._append(encode(Kind.ACKNOWLEDGED, "\n".join(ours).encode()))
            except OSError as error:
                self._fail(error)
            else:
                return
        self._unwritten.update(dict.fromkeys(ours))

    def _append(self, data: bytes, *, opens: bool = False) -> Segment:
        """Appends records. opens: whether there are some that open calls, which are all that the tally is for."""
        current = self._segments[-1] if self._segments else None
        if current is None or current.broken or current.size >= self._segment_bytes:
            current = self._rotate()
        try:
            current.append(data)
        except OSError as error:
            # These tell of the file and not of the disk: a new one may do. An empty one is no better than another empty one.
            current.broken |= error.errno in _BAD_FILE and current.size > 0
            raise
        if opens and self._tally is not None:
            self._tally.note(self._made - 1, current.size)
        return current

    def _rotate(self) -> Segment:
        segment = Segment.create(self._directory, segment_name(self.stem, self._made))
        self._made += 1
        self._segments.append(segment)
        return segment

    def _settle_in(self, request_id: str, kind: Kind, segment: Segment) -> None:
        if request_id not in self._homes:
            self._homes[request_id] = segment
            segment.live.add(request_id)
        if kind is Kind.SETTLEMENT:
            segment.unsynced.append(request_id)
            self._dirty.set()

    def _fail(self, error: OSError) -> None:
        if self.writable:
            _log.error("outbox_unwritable", directory=str(self._directory), error=str(error))
        self.writable = False
        self._failed.set()

    # -- syncing --------------------------------------------------------------------------------------------------------------

    @survives
    async def _keep_synced(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._sync()
            await asyncio.sleep(SYNC_INTERVAL)

    async def _sync(self) -> None:
        for segment in [segment for segment in self._segments if segment.unsynced and not segment.broken]:
            synced, segment.unsynced = segment.unsynced, []
            try:
                await self._on_thread(segment.sync)
            except OSError as error:
                self._condemn(segment, [*synced, *segment.unsynced], error)

    def _condemn(self, segment: Segment, doubtful: Iterable[str], error: OSError) -> None:
        """Gives a file up, and has all that it alone may hold written anew into another one.

        The kernel may have thrown away what it could not write, of any age, and tells of it once: the next sync of the same
        file would succeed and mean nothing.
        """
        segment.broken = True
        segment.unsynced = []
        self._unwritten.update(dict.fromkeys([*doubtful, *segment.live]))
        self._fail(error)

    # -- care -----------------------------------------------------------------------------------------------------------------

    @survives
    async def _keep_well(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CARE_INTERVAL):
                    await self._failed.wait()
            if not self.writable:
                await asyncio.sleep(CARE_INTERVAL)
            try:
                await self._care()
            except OSError as error:
                self._fail(error)

    async def _care(self) -> None:
        for segment in self._segments:
            if not segment.is_linked():
                segment.broken = True
                if segment.live:
                    self._condemn(segment, segment.unsynced, OSError(f"{segment.path.name} was removed"))
        if not self.writable and not await self._recover():
            return
        if len(self._segments) > _MANY_SEGMENTS and len(self._segments[0].live) <= _FEW_CALLS:
            # Long streams must not pile files up: the few calls that keep the oldest move to the newest.
            await self._write_again(list(self._segments[0].live))
        if len(self._segments) > 1 and not self._segments[0].live:
            await self._sync()
            await self._on_thread(self._remove, self._retire())

    def _retire(self) -> list[Segment]:
        """Takes out the files that nobody needs, from the oldest on: what acknowledges a call must outlive what opened it."""
        done: list[Segment] = []
        while len(self._segments) > 1 and not self._segments[0].live:
            done.append(self._segments.pop(0))
        return done

    async def _recover(self) -> bool:
        self._failed.clear()
        try:
            await self._on_thread(probe, self._directory, self.stem)
            while self._unwritten:
                await self._write_again(list(self._unwritten))
        except OSError:
            self._failed.set()
            return False
        self.writable = True
        _log.info("outbox_writable", directory=str(self._directory))
        return True

    async def _write_again(self, request_ids: list[str]) -> None:
        """Appends where each call stands now, in chunks, and lets go of what older files say of it. Raises OSError."""
        while request_ids:
            data, kinds = b"", dict[str, Kind]()
            while request_ids and len(data) < _CHUNK:
                request_id = request_ids.pop()
                kind, body = self._snapshot(request_id) or (Kind.ACKNOWLEDGED, request_id.encode())
                data += encode(kind, body)
                kinds[request_id] = kind
            segment = self._append(data, opens=True)
            for request_id, kind in kinds.items():
                self._unwritten.pop(request_id, None)
                if (home := self._homes.pop(request_id, None)) is not None:
                    home.live.discard(request_id)
                if kind is not Kind.ACKNOWLEDGED:
                    self._settle_in(request_id, kind, segment)
            await asyncio.sleep(0)

    @staticmethod
    def _remove(segments: Sequence[Segment]) -> None:
        for segment in segments:
            try:
                segment.remove()
            except OSError as error:
                _log.warning("outbox_file_not_removed", file=segment.path.name, error=str(error))
                segment.close()

    async def _on_thread(self, call: Callable[..., None], *arguments: object) -> None:
        # Shielded: what was begun is done, also when the proxy stops meanwhile.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments))


def describe(error: OSError) -> str:
    """What the system says about an error, without a path."""
    return os.strerror(error.errno) if error.errno else str(error)
