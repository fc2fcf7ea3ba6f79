"""Runs tests against copies of the tree, and says of a mutant whether they noticed it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.etree import ElementTree

from tests.prove.mutants.mutant import DoesNotApply, Mutant

PARTS = ("gateway", "services", "clients", "tests", "benchmarks", "protos", "pyproject.toml")
LONGEST_TEST = 60  # seconds; what waits for ever was noticed, too
LONGEST = 240  # seconds that all tests of one mutant may take
# What a mutant that is not even Python any more raises. Such a one tells nothing about the guard.
_NO_PROGRAM = re.compile(r"\b(SyntaxError|IndentationError|ImportError|ModuleNotFoundError|NameError|UnboundLocalError)\b")


class Verdict(StrEnum):
    """What became of a mutant. All but CAUGHT fail the run."""

    CAUGHT = "caught"
    SURVIVED = "SURVIVED"
    STALE = "DOES NOT APPLY"
    BROKEN = "NO PROGRAM"
    NOT_JUDGED = "NOT JUDGED"


class Outcome(StrEnum):
    """What became of a test. ERROR: it never ran, or its end failed."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Ran:
    """A test that was run. id: as pytest takes it. told: the first line of its failure."""

    id: str
    outcome: Outcome
    told: str = ""


@dataclass(frozen=True)
class Finding:
    """A mutant with its verdict. by: the tests that noticed it. told: what they said, or what is wrong."""

    mutant: Mutant
    verdict: Verdict
    seconds: float = 0.0
    by: tuple[str, ...] = ()
    told: str = ""


def copy(source: Path, target: Path, *, compiled: bool) -> Path:
    """What the tests need of a tree, in a new folder. compiled: with the compiled files, which are of the same texts."""
    ignore = None if compiled else shutil.ignore_patterns("__pycache__")
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=ignore)
        elif (source / part).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, target / part)
    return target


def run_tests(tree: Path, tests: Collection[str], *, options: Sequence[str] = (), seconds: float = LONGEST) -> list[Ran]:
    """Runs tests of a copy; gives those that were begun, and none where pytest could not even collect them."""
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [f"--timeout={LONGEST_TEST}", f"--basetemp={tree / 'scratch'}", *options, *sorted(tests)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "GATEWAY_"))}
    # Before the folder of the editable installation, also for the processes that tests start.
    environment["PYTHONPATH"] = str(tree)
    with (tree / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            _end(process)
        except BaseException:
            _end(process)
            raise
    return read(report)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Has pytest stop what its tests have started, and then the rest."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def read(report: Path) -> list[Ran]:
    """The tests of pytest's report in XML; none where there is no report."""
    if not report.exists():
        return []
    ran: dict[str, Ran] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        where = case.get("classname", "").replace(".", "/")
        known = f"{where}.py::{case.get('name')}"
        outcome, told = Outcome.PASSED, ""
        for tag, meant in (("skipped", Outcome.SKIPPED), ("error", Outcome.ERROR), ("failure", Outcome.FAILED)):
            if (found := case.find(tag)) is not None:
                outcome, told = meant, found.get("message", "")
        if known in ran and ran[known].outcome is Outcome.FAILED:
            continue  # its end failed as well
        ran[known] = Ran(known, outcome, told.strip().partition("\n")[0])
    return list(ran.values())


def selected(test: str, ran: Ran) -> bool:
    """Whether a test that was run is meant by an id: a file, a test, or one case of it."""
    return ran.id == test or ran.id.startswith((f"{test}[", f"{test}::"))


def judge(mutant: Mutant, ran: Sequence[Ran]) -> tuple[Verdict, tuple[str, ...], str]:
    """The verdict over a mutant whose tests were run, who noticed it, and what they said.

    A test has noticed it when it ran and failed, or when its end did, as that is where books are audited. One that could not
    begin has not.
    """
    failed = [one for one in ran if one.outcome is Outcome.FAILED]
    failed += [one for one in ran if one.outcome is Outcome.ERROR and one.told.startswith("failed on teardown")]
    if broken := [one for one in ran if _NO_PROGRAM.search(one.told)]:
        return Verdict.BROKEN, (broken[0].id,), broken[0].told
    if failed:
        return Verdict.CAUGHT, tuple(one.id for one in failed), failed[0].told
    if not ran:
        return Verdict.BROKEN, (), "its tests could not be collected, or did not come to their end"
    if errors := [one for one in ran if one.outcome is Outcome.ERROR]:
        return Verdict.BROKEN, (errors[0].id,), errors[0].told
    if all(one.outcome is Outcome.SKIPPED for one in ran):
        return Verdict.NOT_JUDGED, (), "its tests are skipped on this machine"
    return Verdict.SURVIVED, (), ""


def try_mutant(mutant: Mutant, untouched: Path, folder: Path) -> Finding:
    """Breaks the guard in a copy of the untouched copy, runs its tests there, and removes the copy."""
    started = time.monotonic()
    tree = copy(untouched, folder / mutant.name, compiled=True)
    try:
        try:
            mutant.apply(tree)
        except DoesNotApply as fault:
            return Finding(mutant, Verdict.STALE, told=str(fault))
        verdict, by, told = judge(mutant, run_tests(tree, mutant.tests, options=["-x"]))
        return Finding(mutant, verdict, time.monotonic() - started, by, told)
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def red_when_untouched(mutant: Mutant, ran: Sequence[Ran]) -> str:
    """Why a mutant cannot be judged: a test of it that is not there, or not green, without the mutant. Empty: it can."""
    for test in mutant.tests:
        found = [one for one in ran if selected(test, one)]
        if not found:
            return f"{test} was not run on the untouched copy"
        if bad := [one for one in found if one.outcome in {Outcome.FAILED, Outcome.ERROR}]:
            return f"{bad[0].id} is red on the untouched copy: {bad[0].told}"
    return ""
