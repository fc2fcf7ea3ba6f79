"""What a call costs the ledger with few tokens and many, with no rows and a million, in interleaved rounds, as one table.

    python -m benchmarks.flat [--database sqlite|postgresql] [--quick] [--rounds N]

Databases of each size stand side by side, and `Ledger.commit` is measured on one after another, round by round: batches of 32
settlements and 32 admissions, as the proxy sends them under load, of one token (`hot`; it has six in ten of all rows) and of
tokens taken at random; and calls one at a time. A figure is CPU a call, an admission with its settlement, of this process and,
on PostgreSQL, of the server's processes for this database; its median over the rounds is compared with the smallest size that
it can be measured at. Exits with 1 when a ratio is above 1.10. What else looks at the books is timed afterwards: a token's
holder, the sweeper, pruning that finds nothing to delete.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from prometheus_client import CollectorRegistry

from benchmarks.log_pages import fill
from gateway.admission import Admission, Admitted, Settled
from gateway.clock import SystemClock
from gateway.storage import token_usage
from gateway.storage.database import Database, connect
from gateway.storage.ledger import Ledger
from gateway.storage.retention import Position, old_calls
from gateway.tokens import hash_secret, key_fingerprint
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics
from services.auth.sweeper import Sweeper
from tests.support.ledger import KEY, admission, make_database, open_ledger, settled
from tests.support.postgres import PostgresServer

MOST = 1.10  # times the cost at the smallest size
AT_ONCE = 32
_CHUNK = 20_000


@dataclass(frozen=True)
class Size:
    """How much is in a database."""

    tokens: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.tokens:,} token{'s' if self.tokens > 1 else ''}, {self.rows:,} rows"


@dataclass(frozen=True)
class Load:
    """What is measured. at_once: calls of a batch. batches: of one measurement. random: of tokens at random, not of one."""

    name: str
    at_once: int
    batches: int
    random: bool


LOADS = (
    Load("32 at once, hot", AT_ONCE, 30, random=False),
    Load("32 at once, random", AT_ONCE, 30, random=True),
    Load("one at a time, random", 1, 200, random=True),
)


@dataclass
class Site:
    """A database of a size, its ledger, and whose CPU it takes. Milliseconds a call: of CPU and of time, a round each."""

    size: Size
    db: Database
    ledger: Ledger
    backends: Callable[[], float]
    chance: random.Random
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    wall_ms: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, load: Load) -> None:
        """One round."""
        batches = [[self._call(load) for _ in range(load.at_once)] for _ in range(load.batches + 1)]
        reports = [[settled(call.request_id, read=1, written=1) for call in batch] for batch in batches]
        self._commit([], batches[0])
        ours, theirs, started = time.process_time(), self.backends(), time.perf_counter()
        for number in range(1, len(batches)):
            self._commit(reports[number - 1], batches[number])
        wall = time.perf_counter() - started
        cpu = time.process_time() - ours + self.backends() - theirs
        self._commit(reports[-1], [])
        calls = load.at_once * load.batches
        self.cpu_ms.setdefault(load.name, []).append(1000 * cpu / calls)
        self.wall_ms.setdefault(load.name, []).append(1000 * wall / calls)

    def _commit(self, reports: list, calls: list[Admission]) -> None:
        outcome = self.ledger.commit(reports, calls, timeout=30.0)
        assert all(isinstance(answer, Settled) for answer in outcome.settlements), outcome.settlements
        assert all(isinstance(answer, Admitted) for answer in outcome.admissions), outcome.admissions

    def _call(self, load: Load) -> Admission:
        return admission(secret=secret(self.chance.randint(1, self.size.tokens) if load.random else 1), read=1, limit=1)


def secret(token_id: int) -> str:
    return f"a-token-of-the-benchmark-{token_id}"


def fill_up(db: Database, size: Size) -> None:
    """Puts rows, the totals of their days, and tokens into an empty ledger. Each token has a budget that is never spent."""
    if size.rows:
        with db.write():
            db.run("INSERT INTO client_tokens (id, name) VALUES (1, 'token-1')")
        with without_indexes(db):
            fill(db, size.rows)
        with db.write():
            db.run(
                "INSERT INTO daily_totals (token_id, day, model, requests, input_tokens, output_tokens, cost_nanos)"
                " SELECT token_id, substr(admitted_at, 1, 10), request_model, COUNT(*), SUM(input_tokens), SUM(output_tokens),"
                " SUM(cost_nanos) FROM requests GROUP BY 1, 2, 3"
            )
    ((there,),) = db.query("SELECT COUNT(*) FROM client_tokens")
    hashes = [hash_secret(KEY, secret(number)).hex() for number in range(1, size.tokens + 1)]
    budget = 1_000_000_000_000_000
    for start in range(there, size.tokens, _CHUNK):
        numbers = range(start + 1, min(size.tokens, start + _CHUNK) + 1)
        with db.write():
            db.run_many("INSERT INTO client_tokens (id, name) VALUES (?, ?)", [(n, f"token-{n}") for n in numbers])
    for start in range(0, size.tokens, _CHUNK):
        numbers = range(start + 1, min(size.tokens, start + _CHUNK) + 1)
        with db.write():
            db.run_many(
                "UPDATE client_tokens SET token_hash = ?, hash_key_id = ?, max_amount_nanos = ? WHERE id = ?",
                [(hashes[n - 1], key_fingerprint(KEY), budget, n) for n in numbers],
            )
    if db.is_shared:
        for table in ("client_tokens", "requests", "daily_totals"):
            db.run(f"VACUUM ANALYZE {table}")
    db.tend(last=True)


@contextmanager
def without_indexes(db: Database) -> Iterator[None]:
    """Makes the indexes of the calls anew at the end of a block that inserts many: the same indexes, in a third of the time."""
    if db.is_shared:
        told = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'requests' AND indexname <> 'requests_pkey'"
    else:
        told = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'requests' AND sql IS NOT NULL"
    indexes = db.query(told)
    with db.write():
        for name, _ in indexes:
            db.run(f"DROP INDEX {name}")
    yield
    with db.write():
        for _, definition in indexes:
            db.run(definition)


@contextmanager
def sites(kind: str, sizes: list[Size]) -> Iterator[list[Site]]:
    """A database of each size."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-flat-")))
        server = None
        if kind == "postgresql":
            server = PostgresServer(synced=True)
            stack.callback(server.close)
        found = []
        for number, size in enumerate(sizes):
            started = time.perf_counter()
            (folder / str(number)).mkdir()
            url = f"sqlite:///{folder / str(number)}/gateway.db" if server is None else server.create()
            made = make_database(url)
            fill_up(made, size)
            made.close()
            db = stack.enter_context(closing(connect(url, busy_timeout=5.0)))
            ledger = stack.enter_context(closing(open_ledger(db)))
            backends = (lambda: 0.0) if server is None else backends_of(server, url)
            found.append(Site(size, db, ledger, backends, random.Random(number)))
            print(f"{kind}: {size.name} in {time.perf_counter() - started:.0f} s", flush=True)
        yield found


def backends_of(server: PostgresServer, url: str) -> Callable[[], float]:
    """The CPU seconds of a server's processes that work for one database."""
    name = f" {urlsplit(url).path[1:]} "

    def seconds() -> float:
        total = 0.0
        for process in psutil.Process(server.pid).children():
            try:
                if name in " ".join(process.cmdline()):
                    times = process.cpu_times()
                    total += times.user + times.system
            except psutil.NoSuchProcess:  # one that vacuumed, and is done
                continue
        return total

    return seconds


def compare(found: list[Site], loads: tuple[Load, ...], rounds: int) -> bool:
    """Measures and prints; gives whether all is flat."""
    pairs = [(site, load) for load in loads for site in found if not load.random or site.size.tokens >= AT_ONCE]
    for site, load in pairs:
        site.measure(load)  # warms up; not counted
    for site in found:
        site.cpu_ms.clear()
        site.wall_ms.clear()
    for _ in range(rounds):
        for site, load in pairs:
            site.measure(load)
    print(f"{'load':24}{'database':34}{'CPU ms':>9}{'ratio':>8}{'wall ms':>9}{'ratio':>8}")
    flat = True
    for load in loads:
        base: tuple[float, float] | None = None
        for site in [site for site, of in pairs if of is load]:
            cpu, wall = statistics.median(site.cpu_ms[load.name]), statistics.median(site.wall_ms[load.name])
            base = base or (cpu, wall)
            ratio = cpu / base[0]
            flat &= ratio <= MOST
            mark = "" if ratio <= MOST else "  above"
            print(f"{load.name:24}{site.size.name:34}{cpu:9.3f}{ratio:8.2f}{wall:9.3f}{wall / base[1]:8.2f}{mark}", flush=True)
    return flat


def look_around(site: Site) -> None:
    """Prints how long what is not a call takes, in milliseconds."""
    clock, db = SystemClock(), site.db
    now = clock.now()
    sweeper = Sweeper(
        db=db, ledger=site.ledger, denials=DenialLog(clock), clock=clock, metrics=AuthMetrics(CollectorRegistry())
    )
    hashed = hash_secret(KEY, secret(1)).hex()
    with_prices = admission(secret=secret(1), request_id="")
    work: dict[str, Callable[[], object]] = {
        "balance": lambda: token_usage.find(db, hashed, now),
        "totals by model": lambda: token_usage.by_model(db, 1),
        "last calls": lambda: token_usage.recent(db, 1),
        "a look, nothing held": lambda: site.ledger.commit([], [with_prices]),
        "sweeper": sweeper.look,
        "pruning, nothing old": lambda: old_calls(db, now - timedelta(days=90), now, Position()),
    }
    told = []
    for name, run in work.items():
        taken = []
        for _ in range(20):
            started = time.perf_counter()
            run()
            taken.append(1000 * (time.perf_counter() - started))
        told.append(f"{name} {statistics.median(taken):.2f}")
    print(f"{site.size.name:34}{', '.join(told)}", flush=True)


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="only this one")
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens and rows")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    many, rows = (10_000, 100_000) if arguments.quick else (100_000, 1_000_000)
    sizes = [Size(1, 0), Size(1_000, 0), Size(many, 0), Size(1_000, rows), Size(many, rows)]
    flat = True
    for kind in (arguments.database,) if arguments.database else ("sqlite", "postgresql"):
        with sites(kind, sizes) as found:
            flat &= compare(found, LOADS, arguments.rounds)
            print("milliseconds:")
            for site in found:
                look_around(site)
    print(f"a call costs the same within {MOST - 1:.0%}: {'yes' if flat else 'NO'}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
