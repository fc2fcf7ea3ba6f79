"""Pages of the request log over a million rows, filter by filter, on SQLite and PostgreSQL, as one table.

    python -m benchmarks.log_pages [--rows N] [--pages N] [--database sqlite|postgresql]

The rows are as unkind as rows get: one token has six calls in ten, nine calls in ten are to one model, and others are all but
alone. Each filter is asked for its first page and for pages from anywhere in the log. Afterwards batches of the ledger are
timed with the indexes that only the log needs and without them, in turn: what they cost each call.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.clock import SystemClock, to_text
from gateway.ids import uuid7
from gateway.storage.database import Database, connect
from gateway.storage.request_log import RequestFilter, RequestLog
from tests.support.ledger import add_token, admission, make_database, open_ledger, settled
from tests.support.postgres import PostgresServer

DAYS = 30
LARGE, SMALL, LONE = 1, 2, 101  # tokens: six calls in ten, a two hundred and fiftieth, ten in all
COMMON, RARE, FOREIGN, UNHEARD = "common", "rare", "foreign", "unheard"  # models; `foreign`: the large token never used it
INDEXES = {
    "requests_token_model": "(token_id, (request_model || ''), request_id)",
    "requests_admitted_at": "(admitted_at, request_id)",
}
_CHUNK = 20_000
_COLUMNS = (
    "request_id, token_id, identity, proxy_id, state, endpoint, dialect, request_model, response_model, provider, candidates,"
    " admitted_at, settled_at, held_nanos, cost_nanos, price_id, input_tokens, output_tokens, usage_source, status, client_ip,"
    " user_agent, report_digest"
)


@dataclass(frozen=True)
class Times:
    """Milliseconds."""

    p50: float
    p95: float
    worst: float


def times_of(taken: list[float]) -> Times:
    """The figures of measurements in seconds."""
    ordered = sorted(value * 1000 for value in taken)
    return Times(statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1])


def fill(db: Database, rows: int) -> list[str]:
    """Puts calls into an empty ledger; gives some of their ids, spread over all of them."""
    chance = random.Random(1)  # the same rows each time
    now = datetime.now(UTC)
    first = now - timedelta(days=DAYS)
    step = timedelta(days=DAYS) / rows
    marks: list[str] = []
    with db.write():
        db.run_many("INSERT INTO client_tokens (id, name) VALUES (?, ?)", [(n, f"token-{n}") for n in range(2, LONE + 1)])
    for start in range(0, rows, _CHUNK):
        values = []
        for number in range(start, min(rows, start + _CHUNK)):
            at = first + step * number
            request_id = uuid7(int(at.timestamp() * 1000))
            values.append(_row(chance, rows, number, request_id, at))
            if number % max(1, rows // 200) == 0:
                marks.append(request_id)
        with db.write():
            db.run_many(f"INSERT INTO requests ({_COLUMNS}) VALUES ({', '.join('?' * 23)})", values)
        db.tend()
    _analyze(db)
    return marks


def _row(chance: random.Random, rows: int, number: int, request_id: str, at: datetime) -> tuple[object, ...]:
    token = LARGE if chance.random() < 0.6 else chance.randint(SMALL, LONE - 1)
    if number % max(1, rows // 10) == 7:
        token = LONE
    model = COMMON if chance.random() < 0.9 else f"model-{chance.randint(1, 20)}"
    if number % max(1, rows // 20) == 3:
        model = RARE
    elif number % 50 == 11 and token != LARGE:
        model = FOREIGN
    state, source = "settled", "provider"
    if token not in (LARGE, LONE) and number % 8 == 0:
        state, source = "released", "none"
    elif number % 1000 == 1:
        state, source = "expired", "estimated"
    served = state == "settled"
    told = to_text(at)
    return (
        request_id,
        token,
        "proxy",
        "0193e2c4-7b1a-7c3d-9f00-1a2b3c4d5e6f",
        state,
        "/v1/chat/completions",
        "openai",
        model,
        f"{model}-2026-01-01" if served else "",
        "demo",
        f'[["demo","{model}",1]]',
        told,
        to_text(at + timedelta(seconds=2)),
        100_000,
        70_000 if served else 0,
        1,
        1_000 if served else 0,
        300 if served else 0,
        source,
        200 if served else 429,
        "203.0.113.9",
        "benchmark/1.0",
        "0" * 32,
    )


def _analyze(db: Database) -> None:
    """What a server does by itself now and then."""
    if db.is_shared:
        db.run("VACUUM ANALYZE requests")
    db.tend(last=True)


def filters(now: datetime) -> dict[str, RequestFilter]:
    """Each way to ask, worst cases included."""
    week, day = now - timedelta(days=7), now - timedelta(days=1)
    return {
        "all": RequestFilter(),
        "large token": RequestFilter(token_id=LARGE),
        "token of ten calls": RequestFilter(token_id=LONE),
        "token by name": RequestFilter(token_name="token-50"),
        "common model": RequestFilter(model=COMMON),
        "rare model": RequestFilter(model=RARE),
        "unknown model": RequestFilter(model=UNHEARD),
        "large token, common model": RequestFilter(token_id=LARGE, model=COMMON),
        "large token, rare model": RequestFilter(token_id=LARGE, model=RARE),
        "large token, a model of others": RequestFilter(token_id=LARGE, model=FOREIGN),
        "small token, common model": RequestFilter(token_id=SMALL, model=COMMON),
        "state settled": RequestFilter(state="settled"),
        "state released": RequestFilter(state="released"),
        "state expired": RequestFilter(state="expired"),
        "state admitted": RequestFilter(state="admitted"),
        "large token, released (none is)": RequestFilter(token_id=LARGE, state="released"),
        "small token, released": RequestFilter(token_id=SMALL, state="released"),
        "token of ten calls, expired": RequestFilter(token_id=LONE, state="expired"),
        "large token, expired": RequestFilter(token_id=LARGE, state="expired"),
        "rare model, released": RequestFilter(model=RARE, state="released"),
        "common model, expired": RequestFilter(model=COMMON, state="expired"),
        "large token, common model, released": RequestFilter(token_id=LARGE, model=COMMON, state="released"),
        "large token, admitted": RequestFilter(token_id=LARGE, state="admitted"),
        "common model, admitted": RequestFilter(model=COMMON, state="admitted"),
        "last day": RequestFilter(since=day),
        "one hour, a week ago": RequestFilter(since=week, until=week + timedelta(hours=1)),
        "one hour, large token": RequestFilter(token_id=LARGE, since=week, until=week + timedelta(hours=1)),
        "one hour, rare model": RequestFilter(model=RARE, since=week, until=week + timedelta(hours=1)),
        "one hour, released": RequestFilter(state="released", since=week, until=week + timedelta(hours=1)),
        "before all": RequestFilter(until=now - timedelta(days=DAYS + 1)),
        "one hour, common model, large token": RequestFilter(
            token_id=LARGE, model=COMMON, since=week, until=week + timedelta(hours=1)
        ),
        "two weeks, from three weeks ago": RequestFilter(since=week - timedelta(days=14), until=week),
        "large token, rare model, last day": RequestFilter(token_id=LARGE, model=RARE, since=day),
    }


def pages(db: Database, wanted: RequestFilter, marks: list[str], count: int) -> Times:
    """How long pages of a hundred take: every fourth is the first one, the others begin anywhere."""
    log = RequestLog(db)
    chance = random.Random(2)  # the same pages for each filter
    taken = []
    for number in range(count):
        before = "" if number % 4 == 0 else chance.choice(marks)
        started = time.perf_counter()
        log.page(wanted, limit=100, before_id=before)
        taken.append(time.perf_counter() - started)
    return times_of(taken)


def batches(db: Database, count: int = 60) -> Times:
    """How long a batch of 32 settlements and 32 admissions takes, its sync included."""
    with closing(open_ledger(db)) as ledger:
        open_calls = [admission() for _ in range(32)]
        ledger.commit([], open_calls)
        taken = []
        for _ in range(count):
            new = [admission() for _ in range(32)]
            started = time.perf_counter()
            ledger.commit([settled(call.request_id) for call in open_calls], new)
            taken.append(time.perf_counter() - started)
            open_calls = new
        ledger.commit([settled(call.request_id) for call in open_calls], [])
    return times_of(taken)


@contextmanager
def opened(kind: str) -> Iterator[Database]:
    """A new, migrated database with one token that can pay."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="gateway-log-") as folder, closing(make_database(Path(folder))) as db:
            add_token(db, max_amount="1000000")
            yield db
        return
    server = PostgresServer(synced=True)
    try:
        url = server.create()
        make_database(url).close()
        with closing(connect(url, busy_timeout=5.0)) as db:
            add_token(db, max_amount="1000000")
            yield db
    finally:
        server.close()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, default=40, help="pages for each filter")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="only this one")
    arguments = parser.parse_args()
    for kind in (arguments.database,) if arguments.database else ("sqlite", "postgresql"):
        with opened(kind) as db:
            started = time.perf_counter()
            marks = fill(db, arguments.rows)
            print(f"{kind}: {arguments.rows:,} rows in {time.perf_counter() - started:.0f} s", flush=True)
            print(f"{'filter':36}{'p50 ms':>10}{'p95 ms':>10}{'worst ms':>10}")
            for name, wanted in filters(SystemClock().now()).items():
                found = pages(db, wanted, marks, arguments.pages)
                print(f"{name:36}{found.p50:10.2f}{found.p95:10.2f}{found.worst:10.2f}", flush=True)
            _compare_batches(db)


def _compare_batches(db: Database) -> None:
    """Batches with the indexes that serve the log alone, and without them, in turn."""
    for _ in range(3):
        _tell_batches(db, "with " + " and ".join(INDEXES))
        for name in INDEXES:
            db.run(f"DROP INDEX {name}")
        db.tend(last=True)
        _tell_batches(db, "without them")
        for name, columns in INDEXES.items():
            db.run(f"CREATE INDEX {name} ON requests {columns}")
        db.tend(last=True)


def _tell_batches(db: Database, name: str) -> None:
    found = batches(db)
    print(f"{'batch ' + name:64}{found.p50:8.2f}{found.p95:8.2f}{found.worst:8.2f}", flush=True)


if __name__ == "__main__":
    main()
