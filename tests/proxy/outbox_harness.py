"""Books that take settlements as the ledger does, and a process that fills an outbox until it is killed.

`python -m tests.proxy.outbox_harness FOLDER` writes calls without end, and names each on its output once it is written.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from gateway.errors import AlreadyExists, AuthUnavailable, NotFound
from gateway.ids import uuid7
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.outbox import Outbox, token_key
from services.proxy.outbox_files import Kind, encode

KEY = token_key("sk-of-the-tests")


class Books:
    """Takes each settlement once; the same again is no harm, another for the same call is refused.

    away: nothing is taken. unknown: calls that it never admitted. batches: how many settlements came each time.
    """

    def __init__(self) -> None:
        self.booked: dict[str, bytes] = {}
        self.away = False
        self.unknown: set[str] = set()
        self.busy: set[str] = set()
        self.repeats = 0
        self.conflicts = 0
        self.batches: list[int] = []
        self.hold: asyncio.Event | None = None

    async def send(self, settlements: list[pb.RecordUsageRequest]) -> list[pb.SettlementResult]:
        if self.hold is not None:
            await self.hold.wait()
        if self.away:
            raise AuthUnavailable("away", retry_after=1.0)
        self.batches.append(len(settlements))
        return [self._book(settlement) for settlement in settlements]

    def report(self, request_id: str) -> pb.RecordUsageRequest:
        return pb.RecordUsageRequest.FromString(self.booked[request_id])

    def _book(self, settlement: pb.RecordUsageRequest) -> pb.SettlementResult:
        raw = settlement.SerializeToString(deterministic=True)
        if settlement.request_id in self.busy:
            return pb.SettlementResult(error=pb.ItemError(code=14, reason="DATABASE_UNAVAILABLE"))
        if settlement.request_id in self.unknown:
            return pb.SettlementResult(error=pb.ItemError(code=5, reason=NotFound.reason, message="never admitted"))
        if settlement.request_id in self.booked:
            if self.booked[settlement.request_id] != raw:
                self.conflicts += 1
                return pb.SettlementResult(
                    error=pb.ItemError(code=6, reason=AlreadyExists.reason, message="another came first")
                )
            self.repeats += 1
        self.booked[settlement.request_id] = raw
        return pb.SettlementResult(response=pb.RecordUsageResponse(cost_nanos=1, state="settled"))


def report(
    request_id: str, output: int = 3, *, duration_ms: int = 0, ttft_ms: int = 0, **fields: object
) -> pb.RecordUsageRequest:
    return pb.RecordUsageRequest(
        request_id=request_id,
        outcome=pb.OUTCOME_SETTLED,
        usage=[pb.UsageItem(unit="input", count=7), pb.UsageItem(unit="output", count=output)],
        source=pb.USAGE_SOURCE_PROVIDER,
        status=200,
        duration_ms=duration_ms,
        ttft_ms=ttft_ms,
        **fields,
    )


def opened_record(request_id: str) -> bytes:
    return encode(Kind.OPENED, request_id.encode())


def settlement_record(settlement: pb.RecordUsageRequest) -> bytes:
    return encode(Kind.SETTLEMENT, settlement.SerializeToString(deterministic=True))


def output_of(settlement: pb.RecordUsageRequest) -> int:
    return next((item.count for item in settlement.usage if item.unit == "output"), 0)


async def eventually(condition, seconds: float = 5.0) -> None:
    """Returns as soon as the condition holds; fails when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it asks for happens on the disk
            await asyncio.sleep(0.01)


@asynccontextmanager
async def outbox_of(
    directory: Path, books: Books, *, drain: float = 2.0, registry: CollectorRegistry | None = None, **options: int
) -> AsyncIterator[Outbox]:
    outbox = Outbox.open(directory, proxy_id=uuid7(), registry=registry, **options)
    outbox.start(books.send)
    try:
        yield outbox
    finally:
        await outbox.close(drain)


def logs(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.log") if not path.name.startswith("refused-"))


async def _write_without_end(directory: Path) -> None:
    outbox = Outbox.open(directory, proxy_id=uuid7(), segment_bytes=64 * 1024)
    books = Books()
    books.away = True
    outbox.start(books.send)
    while True:
        for _ in range(50):
            request_id = uuid7()
            outbox.opened(request_id, KEY)
            _say(f"opened {request_id}")
            outbox.progress(request_id, report(request_id, 5, duration_ms=1000))
            _say(f"progress {request_id}")
            outbox.append(report(request_id, 9), KEY)
            _say(f"settled {request_id}")
        await asyncio.sleep(0)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    threading.Thread(target=lambda: (sys.stdin.read(), sys.exit()), daemon=True).start()
    asyncio.run(_write_without_end(Path(sys.argv[1])))
