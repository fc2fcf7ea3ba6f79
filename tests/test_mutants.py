"""The table of mutants applies to the tree as it is, and its runner tells a test that noticed from one that did not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.prove.mutants.__main__ import render, run
from tests.prove.mutants.mutant import DoesNotApply, Mutant
from tests.prove.mutants.run import Outcome, Ran, Verdict, judge, red_when_untouched
from tests.prove.mutants.table import MUTANTS

REPOSITORY = Path(__file__).resolve().parents[1]

PRODUCT = """def price(count):
    if count < 0:
        raise ValueError("a count is 0 or more")
    return 3 * count
"""
TESTS = """from gateway.shop import price

import pytest


def test_three_each():
    assert price(2) == 6


def test_below_nought():
    with pytest.raises(ValueError, match="0 or more"):
        price(-1)


def test_nothing_is_asked():
    price(0)


def test_that_is_red():
    assert price(1) == 4


@pytest.mark.skip(reason="not on this machine")
def test_elsewhere():
    assert price(1) == 3
"""


def mutant(name: str, before: str, after: str, *tests: str) -> Mutant:
    return Mutant(name, "A guard.", "gateway/shop.py", before, after, tuple(f"tests/test_shop.py::{test}" for test in tests))


@pytest.mark.parametrize("one", MUTANTS, ids=lambda one: one.name)
def test_each_mutant_applies_once_is_python_and_names_tests_that_there_are(one):
    broken = one.broken(REPOSITORY)
    compile(broken, one.file, "exec")
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse((REPOSITORY / one.file).read_text()))
    for test in one.tests:
        path, _, name = test.partition("::")
        defined = {node.name for node in ast.walk(ast.parse((REPOSITORY / path).read_text())) if hasattr(node, "name")}
        assert name.partition("[")[0] in defined, test


def test_no_two_mutants_have_one_name_and_each_says_what_it_breaks():
    assert len({one.name for one in MUTANTS}) == len({one.guard for one in MUTANTS} | {one.name for one in MUTANTS}) / 2
    assert all(one.tests and one.guard.endswith(".") for one in MUTANTS)


def test_the_runner_tells_what_was_noticed_from_what_was_not(tmp_path):
    files = {"gateway/__init__.py": "", "gateway/shop.py": PRODUCT, "tests/test_shop.py": TESTS}
    for path, text in files.items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_text(text)
    (tmp_path / "work").mkdir()
    guard = '    if count < 0:\n        raise ValueError("a count is 0 or more")\n'
    tried = [
        mutant("noticed", guard, "", "test_nothing_is_asked", "test_below_nought"),
        mutant("overlooked", guard, "", "test_nothing_is_asked"),
        mutant("gone", "if count < 1:", "", "test_below_nought"),
        mutant("no-python", "def price(count):", "def price(count:", "test_three_each"),
        mutant("skipped", "return 3 * count", "return count", "test_elsewhere"),
        mutant("red-anyway", "return 3 * count", "return count", "test_that_is_red"),
    ]
    findings = run(tried, tmp_path / "tree", tmp_path / "work", jobs=1)
    assert {finding.mutant.name: finding.verdict for finding in findings} == {
        "noticed": Verdict.CAUGHT,
        "overlooked": Verdict.SURVIVED,
        "gone": Verdict.STALE,
        "no-python": Verdict.BROKEN,
        "skipped": Verdict.NOT_JUDGED,
        "red-anyway": Verdict.NOT_JUDGED,
    }
    assert findings[0].by == ("tests/test_shop.py::test_below_nought",)
    assert "red on the untouched copy" in findings[-1].told
    assert (tmp_path / "tree" / "gateway" / "shop.py").read_text() == PRODUCT
    table = render(findings, seconds=60)
    assert table.startswith("# Mutants: 1 of 6 caught in 1.0 minutes")
    assert "| overlooked | A guard. | SURVIVED |" in table


def test_a_test_that_is_not_there_judges_nothing():
    one = mutant("m", "a", "b", "test_six_each")
    others = [Ran("tests/test_shop.py::test_six_each_and_more", Outcome.PASSED)]
    assert "was not run" in red_when_untouched(one, others)
    assert red_when_untouched(one, [Ran("tests/test_shop.py::test_six_each[2]", Outcome.PASSED)]) == ""


def test_what_fails_before_or_after_a_test_is_told_apart():
    one = mutant("m", "a", "b", "test_t")
    ended_badly = Ran("t", Outcome.ERROR, 'failed on teardown with "assert [1] == []"')
    assert judge(one, [Ran("s", Outcome.PASSED), ended_badly])[0] is Verdict.CAUGHT
    assert judge(one, [Ran("t", Outcome.ERROR, 'failed on setup with "OSError"')])[0] is Verdict.BROKEN
    assert judge(one, [Ran("t", Outcome.FAILED, "NameError: name 'x' is not defined")])[0] is Verdict.BROKEN
    assert judge(one, [])[0] is Verdict.BROKEN


def test_a_text_that_stands_there_twice_is_no_mutant(tmp_path):
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "shop.py").write_text("a = 1\nb = 1\n")
    with pytest.raises(DoesNotApply, match="2 times"):
        mutant("twice", "= 1", "= 2", "test_t").broken(tmp_path)
