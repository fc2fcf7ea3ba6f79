"""All hostile callers at once beside a calm one: what the calm one notices, and what the edge is left with.

    python -m benchmarks.attack [--seconds N] [--alone N] [--only TEXT] [--without TEXT] [--each] [--unpinned]

The suite runs as it is shipped (auth, proxy and admin, SQLite, mutual TLS), on one core; the providers and all callers have the
other one. The hostile callers' models are at a provider of their own: how soon a busy one answers is not the edge's doing. The
calm caller makes 20 plain calls a second, first alone, then beside the hostile callers of `benchmarks.hostile`.
Exits with 1 unless the calm caller got no 5xx and no silence, its p99 was at most three times what it is alone, no hostile
caller got a 500, half-closed calls were answered, memory grew by at most 128 MiB and came back, and all sockets were returned.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.hostile import HALF_CLOSED, KINDS
from benchmarks.measure import percentile
from tests.suite.stack import REPOSITORY, Stack, configuration, free_port, price, wait_for

TOKEN = "bench-token-of-the-calm-caller"
MALLORY = "bench-token-of-a-hostile-caller"
PER_SECOND = 20.0
SETTLING = 30.0
"""Seconds after which memory and sockets are looked at again."""
MIB = 1024 * 1024


@dataclass
class Calm:
    """What the calm caller saw. p50, p99: milliseconds. slowest: what the slowest calls took, and when they began."""

    statuses: dict[str, int]
    p50: float
    p99: float
    slowest: list[tuple[float, float]]

    @property
    def failed(self) -> int:
        """Calls that got a 5xx or nothing."""
        return sum(count for status, count in self.statuses.items() if status == "none" or status.startswith("5"))

    def __str__(self) -> str:
        slowest = ", ".join(f"{took * 1000:.0f} ms at {began:.0f} s" for took, began in self.slowest)
        return f"p50 {self.p50:6.1f} ms, p99 {self.p99:7.1f} ms, {self.statuses}; slowest {slowest}"


@dataclass
class Holdings:
    """What the processes hold: MiB of memory of each, and open files and sockets of all.

    Files of the database are not counted: each thread of admin that asks it keeps two of them open. In one attack of 60 s they
    went from 4 to 32, with 24 threads.
    """

    of_each: dict[str, float]
    files: int

    @property
    def memory(self) -> float:
        """MiB of all."""
        return sum(self.of_each.values())

    def __str__(self) -> str:
        return sizes(self.of_each)


@dataclass
class Watch:
    """Looks at the memory of processes every 50 ms until it is closed. peak: of each when all together had the most, in MiB."""

    processes: dict[str, psutil.Process]
    peak: dict[str, float] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, memory_of(self.processes), key=lambda of_each: sum(of_each.values()))


def memory_of(processes: dict[str, psutil.Process]) -> dict[str, float]:
    """MiB of each of these processes."""
    return {name: process.memory_info().rss / MIB for name, process in processes.items()}


def holdings(processes: dict[str, psutil.Process]) -> Holdings:
    """What these processes hold now."""
    return Holdings(memory_of(processes), sum(_files(process.pid) for process in processes.values()))


def sizes(of_each: dict[str, float]) -> str:
    """MiB of all and of each."""
    return f"{sum(of_each.values()):.0f} MiB ({', '.join(f'{name} {size:.0f}' for name, size in of_each.items())})"


def _files(pid: int) -> int:
    """Open files, sockets and pipes of a process, without those of the database."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found += "/gateway.db" not in os.readlink(descriptor)
    return found


@dataclass
class Site:
    """The suite, the provider, and which cores they have. cores: of the suite and of everybody else; None: any."""

    stack: Stack
    processes: dict[str, psutil.Process]
    cores: tuple[list[int], list[int]] | None

    def _start(self, module: str, order: dict[str, object]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(order)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        if self.cores is not None:
            psutil.Process(process.pid).cpu_affinity(self.cores[1])
        return process

    def calm(self, seconds: float) -> Calm:
        """The calm caller for so many seconds."""
        order = {"port": self.stack.http_port, "token": TOKEN, "model": "bench", "per_second": PER_SECOND, "seconds": seconds}
        process = self._start("benchmarks.calm", order)
        seen = json.loads(process.communicate(timeout=seconds + 60)[0])
        latencies = seen["latencies"] or [float("inf")]
        slowest = sorted(zip(latencies, seen["due"], strict=False), reverse=True)[:5]
        return Calm(seen["statuses"], percentile(latencies, 0.5) * 1000, percentile(latencies, 0.99) * 1000, slowest)

    def attacked(self, kinds: list[str], seconds: float) -> tuple[Calm, dict[str, dict[str, int]], dict[str, float]]:
        """The calm caller beside these kinds of hostile callers; what those did; MiB of each process at the most."""
        order = {"port": self.stack.http_port, "token": MALLORY, "model": "hostile", "stream_model": "hostile-20"}
        order |= {"seconds": seconds, "kinds": kinds}
        with Watch(self.processes) as watch:
            hostile = self._start("benchmarks.hostile", order)
            calm = self.calm(seconds)
            told = hostile.communicate(timeout=120)[0]
        assert hostile.returncode == 0, "the hostile callers failed"
        return calm, json.loads(told), watch.peak


def judge(site: Site, kinds: list[str], alone: Calm, seconds: float) -> list[str]:
    """Attacks once, prints what was seen, and gives what was not as promised."""
    before = holdings(site.processes)
    calm, done, peak = site.attacked(kinds, seconds)
    deadline = time.monotonic() + SETTLING
    while (after := holdings(site.processes)).files > before.files + 8 and time.monotonic() < deadline:
        time.sleep(0.5)
    calm_after = site.calm(5.0)
    after = holdings(site.processes)
    print(f"  calm, alone   {alone}")
    print(f"  calm, beside  {calm}")
    print(f"  calm, after   {calm_after}")
    print(f"  memory {before}, at most {sizes(peak)}, afterwards {after}")
    print(f"  open files {before.files}, afterwards {after.files}; logs {log_bytes(site.stack.logs) / MIB:.1f} MiB", flush=True)
    for name in kinds:
        print(f"    {name}: {done[name]}")
    crashes = sum(statuses.get("500", 0) for statuses in done.values())
    half_closed = done.get(HALF_CLOSED, {})
    growth = sum(peak.values()) - before.memory
    faults = {
        f"the calm caller got {calm.failed} calls with a 5xx or no answer": calm.failed > 0,
        f"its p99 is {calm.p99 / alone.p99:.1f} times that of its calls alone": calm.p99 > 3 * alone.p99,
        f"hostile callers got {crashes} times 500": crashes > 0,
        f"half-closed calls were not all answered: {half_closed}": set(half_closed) - {"connections", "200"} != set(),
        f"memory grew by {growth:.0f} MiB": growth > 128,
        f"{after.memory - before.memory:.0f} MiB of memory did not come back": after.memory - before.memory > 64,
        f"{after.files - before.files} files stayed open": after.files - before.files > 8,
    }
    return [fault for fault, is_so in faults.items() if is_so]


def log_bytes(directory: Path) -> int:
    """The size of all logs."""
    return sum(path.stat().st_size for path in directory.iterdir())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the hostile callers go on (60)")
    parser.add_argument("--alone", type=float, default=30.0, help="how long the calm caller is measured alone (30)")
    parser.add_argument("--only", default="", help="only kinds of hostile callers whose name contains this")
    parser.add_argument("--without", default="", help="leave out kinds whose name contains one of these, with | between them")
    parser.add_argument("--each", action="store_true", help="one kind after the other instead of all at once")
    parser.add_argument("--unpinned", action="store_true", help="let the kernel choose the cores")
    arguments = parser.parse_args()
    without = arguments.without.split("|") if arguments.without else []
    kinds = [name for name in KINDS if arguments.only in name and not any(text in name for text in without)]
    cores = sorted(os.sched_getaffinity(0))
    split = (cores[:1], cores[1:]) if len(cores) > 1 and not arguments.unpinned else None
    ports = {name: free_port() for name in ("bench", "hostile")}
    config = "".join(
        configuration(
            f"http://127.0.0.1:{port}/v1",
            name=name,
            models=f"{name}*",
            prices="".join(price(model, input="1.00", output="2.00") for model in (name, f"{name}-20")),
        )
        for name, port in ports.items()
    )
    upstreams = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.upstream", str(port)], cwd=REPOSITORY) for port in ports.values()
    ]
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-attack-") as folder, Stack(Path(folder), config) as stack:
            stack.gateway("init")
            stack.start("auth", "admin", "proxy")
            stack.wait_until_ready()
            for token in (TOKEN, MALLORY):
                stack.insert_token(token, max_amount=1_000_000)
            for port in ports.values():
                wait_for("the providers", lambda port=port: stack.listens(port))
            processes = {name: psutil.Process(process.pid) for name, process in stack.processes.items()}
            if split is not None:
                for upstream in upstreams:
                    psutil.Process(upstream.pid).cpu_affinity(split[1])
                for process in processes.values():
                    process.cpu_affinity(split[0])
            site = Site(stack, processes, split)
            site.calm(3.0)  # a warm-up
            alone = site.calm(arguments.alone)
            faults: list[str] = []
            for group in [[kind] for kind in kinds] if arguments.each else [kinds]:
                print(f"\n{group[0] if len(group) == 1 else f'{len(group)} kinds of hostile callers at once'}")
                found = judge(site, group, alone, arguments.seconds)
                print("  " + ("; ".join(f"NO: {fault}" for fault in found) or "as promised"), flush=True)
                faults += found
            return int(bool(faults))
    finally:
        for upstream in upstreams:
            upstream.terminate()
            upstream.wait()


if __name__ == "__main__":
    sys.exit(main())
