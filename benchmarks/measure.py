"""One measurement: a load on one target, and what it cost the target's processes."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

import psutil


@dataclass(frozen=True)
class Scenario:
    """A load. pace: see `benchmarks.client.run`."""

    name: str
    connections: int
    calls: int
    model: str = "bench"
    stream: bool = False
    pace: float = 0.0


@dataclass
class Target:
    """Something that answers on a port, and the processes whose CPU it is, by what they are called in the table."""

    name: str
    port: int
    token: str
    processes: dict[str, psutil.Process] = field(default_factory=dict)

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, user and system, by process."""
        times = {name: process.cpu_times() for name, process in self.processes.items()}
        return {name: used.user + used.system for name, used in times.items()}

    def peak_rss_mib(self) -> float:
        """The most memory that the processes had, in MiB, all together."""
        peaks = []
        for process in self.processes.values():
            with open(f"/proc/{process.pid}/status") as status:
                peaks += [int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")]
        return sum(peaks)


@dataclass(frozen=True)
class Sample:
    """What one load showed. CPU in milliseconds a call; latencies in milliseconds."""

    cpu_ms: float
    cpu_split: dict[str, float]
    per_second: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def measure(target: Target, scenario: Scenario) -> Sample:
    """Puts the load on the target. Raises RuntimeError when a call is not answered with 200."""
    order = {
        "port": target.port,
        "connections": scenario.connections,
        "calls": scenario.calls,
        "model": scenario.model,
        "stream": scenario.stream,
        "token": target.token,
        "pace": scenario.pace,
    }
    before = target.cpu()
    # Into a file: the middle was missing now and then of what came through a pipe, when this program wrote to a pipe itself.
    with tempfile.TemporaryFile("w+") as told:
        command = [sys.executable, "-m", "benchmarks.client", json.dumps(order)]
        subprocess.run(command, stdout=told, stderr=subprocess.PIPE, timeout=120, check=True)
        after = target.cpu()
        told.seek(0)
        seen = json.load(told)
    if seen["failure"] or seen["statuses"] != {"200": scenario.calls}:
        raise RuntimeError(f"{target.name}, {scenario.name}: {seen['statuses']} {seen['failure']}")
    split = {name: (after[name] - before[name]) * 1000 / scenario.calls for name in before}
    return Sample(
        cpu_ms=sum(split.values()),
        cpu_split=split,
        per_second=scenario.calls / seen["seconds"],
        p50_ms=percentile(seen["latencies"], 0.5) * 1000,
        p99_ms=percentile(seen["latencies"], 0.99) * 1000,
        first_p50_ms=percentile(seen["firsts"], 0.5) * 1000,
    )


def median(samples: list[Sample]) -> Sample:
    """The median of each figure by itself."""

    def middle(name: str) -> float:
        return statistics.median(getattr(sample, name) for sample in samples)

    split = {name: statistics.median(sample.cpu_split[name] for sample in samples) for name in samples[0].cpu_split}
    figures = ("cpu_ms", "per_second", "p50_ms", "p99_ms", "first_p50_ms")
    return Sample(cpu_split=split, **{name: middle(name) for name in figures})
