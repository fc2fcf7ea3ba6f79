"""Breaks each guard once and has the tests notice: `python -m tests.prove.mutants [--only NAME,NAME] [--list] [--jobs 2]`.

Works on copies in a temporary folder. Prints a table and exits with 1 when a mutant survives, does not apply any more, or
cannot be judged.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.prove.mutants.mutant import Mutant
from tests.prove.mutants.run import PARTS, Finding, Verdict, copy, red_when_untouched, run_tests, try_mutant
from tests.prove.mutants.table import MUTANTS

REPOSITORY = Path(__file__).resolve().parents[3]
LONGEST_UNTOUCHED = 900  # seconds for all tests on the untouched copy


def main() -> int:
    options = _options()
    if options.list:
        for mutant in options.only:
            print(f"{mutant.name:32} {mutant.guard}")
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gateway-mutants-") as folder:
        findings = run(options.only, REPOSITORY, Path(folder), jobs=options.jobs)
    text = render(findings, seconds=time.monotonic() - started)
    print(text)
    if options.report:
        options.report.write_text(text)
    return 0 if all(finding.verdict is Verdict.CAUGHT for finding in findings) else 1


def run(mutants: Sequence[Mutant], source: Path, folder: Path, *, jobs: int) -> list[Finding]:
    """Tries mutants of a tree, some at a time; gives a finding for each, in order."""
    untouched = copy(source, folder / "untouched", compiled=False)
    missing = [part for part in PARTS if not (untouched / part).exists()]
    tests = {test for mutant in mutants for test in mutant.tests}
    print(f"{len(tests)} tests on the untouched copy{f', without {missing}' if missing else ''}", flush=True)
    ran = run_tests(untouched, tests, options=["-n", str(jobs)], seconds=LONGEST_UNTOUCHED)
    findings: dict[str, Finding] = {}
    for mutant in mutants:
        if why := red_when_untouched(mutant, ran):
            findings[mutant.name] = Finding(mutant, Verdict.NOT_JUDGED, told=why)
            print(_line(findings[mutant.name]), flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        tries = [pool.submit(try_mutant, mutant, untouched, folder) for mutant in mutants if mutant.name not in findings]
        for done in as_completed(tries):
            finding = done.result()
            findings[finding.mutant.name] = finding
            print(_line(finding), flush=True)
    return [findings[mutant.name] for mutant in mutants]


def render(findings: Sequence[Finding], *, seconds: float) -> str:
    """The report: a row a mutant in Markdown, and the sum."""
    caught = sum(finding.verdict is Verdict.CAUGHT for finding in findings)
    lines = [
        f"# Mutants: {caught} of {len(findings)} caught in {seconds / 60:.1f} minutes",
        "",
        "| mutant | guard that was broken | verdict | by | s |",
        "|---|---|---|---|---|",
    ]
    for finding in findings:
        by = "<br>".join(finding.by) or finding.told
        cells = (finding.mutant.name, finding.mutant.guard, finding.verdict, by, f"{finding.seconds:.0f}")
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _line(finding: Finding) -> str:
    by = f"  {finding.by[0].rpartition('/')[2]}" if finding.by else ""
    return f"{finding.verdict:15} {finding.mutant.name:32} {finding.seconds:5.1f} s{by}  {finding.told[:150]}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.prove.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", type=_named, default=MUTANTS, help="only these, by name, with commas between them")
    parser.add_argument("--list", action="store_true", help="name them and end")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="how many are tried at a time")
    parser.add_argument("--report", type=Path, help="a file for the report, too")
    return parser.parse_args()


def _named(text: str) -> list[Mutant]:
    known = {mutant.name: mutant for mutant in MUTANTS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or (unknown := [name for name in names if name not in known]):
        raise argparse.ArgumentTypeError(f"there is no mutant {', '.join(unknown) if names else ''!r}; see --list")
    return [known[name] for name in names]


if __name__ == "__main__":
    sys.exit(main())
