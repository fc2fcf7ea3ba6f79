"""`make bench`: the gateway beside a bare relay and beside the provider alone, in interleaved rounds, as one table.

    python -m benchmarks.load [--quick] [--rounds N] [--only TEXT] [--save] [--fail-above RATIO]

The gateway runs as it is shipped: auth and proxy processes, SQLite on disk with synchronous=FULL, mutual TLS between them, a
token with a strict budget. The relay is aiohttp with application, router and client session. CPU is user + system of all
processes of a target, from the kernel's own count.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from benchmarks.measure import Sample, Scenario, Target, measure, median
from tests.suite.stack import REPOSITORY, Stack, configuration, free_port, price

SCENARIOS = [
    Scenario("plain, 1 connection", connections=1, calls=1000),
    Scenario("plain, 64 connections", connections=64, calls=5000),
    Scenario("50-chunk stream, 1 connection", connections=1, calls=50, model="bench-1", stream=True),
    Scenario("50-chunk stream, 64 connections", connections=64, calls=384, model="bench-20", stream=True),
    Scenario("plain, 50 a second", connections=1, calls=150, pace=0.02),
]
TOKEN = "bench-token-for-the-load-generator"


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


def fsync_ms(directory: Path) -> float:
    """The median of 50 small synced writes where the gateway's database is, in milliseconds."""
    times = []
    with (directory / "fsync-probe").open("wb", buffering=0) as file:
        for _ in range(50):
            started = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    return sorted(times)[25]


def commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def run(scenarios: list[Scenario], rounds: int) -> dict[str, object]:
    """Starts everything, measures all scenarios, and gives the medians by scenario and target."""
    upstream_port, relay_port = free_port(), free_port()
    base_url = f"http://127.0.0.1:{upstream_port}"
    rates = {"input": "1.00", "output": "2.00"}
    prices = "".join(price(model, **rates) for model in sorted({scenario.model for scenario in scenarios}))
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        directory = Path(folder)
        with Stack(directory, configuration(base_url + "/v1", models="bench*", prices=prices)) as stack:
            try:
                for module, *arguments in (
                    ("benchmarks.upstream", str(upstream_port)),
                    ("benchmarks.relay", str(relay_port), base_url),
                ):
                    started.append(subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=REPOSITORY))
                stack.gateway("init")
                stack.start("auth", "proxy")
                stack.wait_until_ready()
                stack.insert_token(TOKEN, max_amount=1_000_000)
                for port in (upstream_port, relay_port):
                    wait_for_port(port)
                services = {name: psutil.Process(process.pid) for name, process in stack.processes.items()}
                targets = [
                    Target("provider alone", upstream_port, TOKEN),
                    Target("bare relay", relay_port, TOKEN, {"relay": psutil.Process(started[1].pid)}),
                    Target("gateway", stack.http_port, TOKEN, services),
                ]
                return _rounds(targets, scenarios, rounds) | {"fsync_ms": fsync_ms(stack.data)}
            finally:
                for process in started:
                    process.terminate()
                    process.wait()


def _rounds(targets: list[Target], scenarios: list[Scenario], rounds: int) -> dict[str, object]:
    for target in targets:
        measure(target, Scenario("warm-up", connections=8, calls=400))
    figures: dict[str, dict[str, Sample]] = {}
    for scenario in scenarios:
        samples: dict[str, list[Sample]] = {target.name: [] for target in targets}
        for turn in range(rounds):
            for target in targets if turn % 2 == 0 else reversed(targets):
                if target.processes or turn == 0:  # the provider alone is there for its latency: once is enough
                    samples[target.name].append(measure(target, scenario))
        figures[scenario.name] = {name: median(taken) for name, taken in samples.items()}
        _print_scenario(scenario.name, figures[scenario.name])
    return {
        "figures": {name: {target: asdict(sample) for target, sample in row.items()} for name, row in figures.items()},
        "peak_rss_mib": {target.name: round(target.peak_rss_mib(), 1) for target in targets if target.processes},
        "ratios": {name: _ratio(row) for name, row in figures.items()},
    }


def _ratio(row: dict[str, Sample]) -> float:
    return round(row["gateway"].cpu_ms / row["bare relay"].cpu_ms, 2) if row["bare relay"].cpu_ms else float("inf")


def _print_scenario(name: str, row: dict[str, Sample]) -> None:
    print(f"\n{name}")
    print(f"  {'':16}{'CPU ms/call':>12}{'calls/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'first ms':>9}  CPU by process")
    for target, sample in row.items():
        split = ", ".join(f"{process} {cpu:.3f}" for process, cpu in sample.cpu_split.items())
        cpu = f"{sample.cpu_ms:.3f}" if sample.cpu_split else "-"
        print(
            f"  {target:16}{cpu:>12}{sample.per_second:>10.0f}{sample.p50_ms:>9.2f}{sample.p99_ms:>9.2f}"
            f"{sample.first_p50_ms:>9.2f}  {split}"
        )
    added = row["gateway"].p50_ms - row["provider alone"].p50_ms
    print(f"  gateway / bare relay: CPU {_ratio(row):.2f} x; the gateway adds {added:.2f} ms at p50", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a fifth of the calls")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each scenario, 1 to 5 (3)")
    parser.add_argument("--only", default="", help="only scenarios whose name contains this")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<date>.json")
    parser.add_argument("--fail-above", type=float, help="exit with 1 when a CPU ratio at 64 connections is above this")
    arguments = parser.parse_args()
    scenarios = [scenario for scenario in SCENARIOS if arguments.only in scenario.name]
    if arguments.quick:
        scenarios = [replace(scenario, calls=max(scenario.calls // 5, scenario.connections)) for scenario in scenarios]
    rounds = 1 if arguments.quick else min(max(arguments.rounds, 1), 5)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, Linux {platform.release()}"
    print(f"{machine}; commit {commit()}; medians of {rounds} rounds")
    results = run(scenarios, rounds)
    print(f"\nmemory at its peak, MiB: {results['peak_rss_mib']}; fdatasync {results['fsync_ms']:.2f} ms")
    if arguments.save:
        now = datetime.datetime.now(datetime.UTC)
        file = REPOSITORY / "benchmarks" / "results" / f"{now:%Y-%m-%dT%H%M}.json"
        file.parent.mkdir(exist_ok=True)
        about = {"machine": machine, "commit": commit(), "at": now.isoformat(timespec="seconds"), "rounds": rounds}
        file.write_text(json.dumps(about | results, indent=2) + "\n")
        print(f"written to {file.relative_to(REPOSITORY)}")
    ratios = results["ratios"]
    assert isinstance(ratios, dict)
    worst = max((ratio for name, ratio in ratios.items() if "64" in name), default=0.0)
    return int(arguments.fail_above is not None and worst > arguments.fail_above)


if __name__ == "__main__":
    sys.exit(main())
