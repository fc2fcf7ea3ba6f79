"""`make bench AGAINST=FOLDER`: this checkout beside another one, in interleaved rounds, and which ratios are worse here.

    python -m benchmarks.against FOLDER [--rounds N] [--only TEXT] [--most SHARE]

Each round runs `benchmarks.load` once in both checkouts, in turns, each in its own environment (`FOLDER/.venv`). What is
compared is the CPU of the gateway over that of the bare relay in the same run, so that a machine that slows down between two
rounds slows both. Exits with 1 when a scenario's median is worse than the other's by more than a share (0.05).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from tests.suite.stack import REPOSITORY


def ratios(checkout: Path, only: str) -> dict[str, float]:
    """The ratios of one round in a checkout, by scenario. Ends the program where the benchmark fails."""
    command = [str(checkout / ".venv" / "bin" / "python"), "-m", "benchmarks.load", "--rounds", "1", "--save", "--only", only]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the benchmark failed in {checkout}:\n{done.stdout}{done.stderr}")
    [written] = [line.removeprefix("written to ") for line in done.stdout.splitlines() if line.startswith("written to ")]
    file = checkout / written
    found: dict[str, float] = json.loads(file.read_text())["ratios"]
    file.unlink()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the other checkout, with `make setup` done in it")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--only", default="", help="only scenarios whose name contains this")
    parser.add_argument("--most", type=float, default=0.05, help="by what share a ratio may be worse (0.05)")
    arguments = parser.parse_args()
    other = arguments.folder.resolve()
    taken: dict[Path, list[dict[str, float]]] = {REPOSITORY: [], other: []}
    for turn in range(arguments.rounds):
        for checkout in (REPOSITORY, other) if turn % 2 == 0 else (other, REPOSITORY):
            taken[checkout].append(ratios(checkout, arguments.only))
            print(".", end="", flush=True)
    print(f"\nCPU of the gateway over that of a bare relay, medians of {arguments.rounds} rounds (least to most)")
    worse = []
    for name in taken[REPOSITORY][0]:
        ours, theirs = ([round_[name] for round_ in taken[checkout]] for checkout in (REPOSITORY, other))
        change = statistics.median(ours) / statistics.median(theirs) - 1
        print(f"  {name:34}{_spread(theirs)} before, {_spread(ours)} now: {change:+.1%}")
        if change > arguments.most:
            worse.append(name)
    print("NO: worse are " + ", ".join(worse) if worse else f"no ratio is worse by more than {arguments.most:.0%}")
    return int(bool(worse))


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):5.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
