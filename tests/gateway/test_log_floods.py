"""Lines that strangers can cause: a few of each source are written, the others are counted, and none is forgotten."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.process.log_floods import EVERY, LogFloods


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(**limits: float) -> tuple[LogFloods, list[dict[str, Any]], Clock]:
    reports: list[dict[str, Any]] = []
    clock = Clock()
    return LogFloods(lambda **facts: reports.append(facts), clock=clock, **limits), reports, clock


def test_the_first_lines_of_a_source_are_written_and_then_one_each_second() -> None:
    floods, _, clock = made(burst=3, per_second=1)
    assert [floods.admits("a", "404") for _ in range(5)] == [True, True, True, False, False]
    assert floods.admits("b", "404")
    clock.now += 1
    assert [floods.admits("a", "404") for _ in range(2)] == [True, False]


def test_many_sources_together_have_a_limit_too() -> None:
    floods, _, clock = made(burst_of_all=5, per_second_of_all=2)
    assert sum(floods.admits(str(number), "401") for number in range(100)) == 5
    clock.now += 2
    assert sum(floods.admits(str(number), "401") for number in range(100, 200)) == 4


def test_what_was_left_out_is_reported_by_kind_every_ten_seconds() -> None:
    floods, reports, clock = made(burst=1, per_second=0)
    for kind in ("404", "404", "401"):
        floods.admits("a", kind)
    floods.admits("b", "404")
    assert reports == []
    clock.now += EVERY
    floods.admits("b", "404")
    assert reports == [{"count": 3, "seconds": EVERY, "kinds": {"404": 2, "401": 1}, "sources": 2}]
    floods.flush()
    floods.flush()
    assert len(reports) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["401", "404"]), st.floats(0, 30)), max_size=200))
def test_every_line_is_either_written_or_reported(events: list[tuple[str, str, float]]) -> None:
    floods, reports, clock = made(burst=2, per_second=0.1, burst_of_all=4, per_second_of_all=0.2)
    written = 0
    for source, kind, pause in events:
        clock.now += pause
        written += floods.admits(source, kind)
    floods.flush()
    assert written + sum(report["count"] for report in reports) == len(events)
    assert all(sum(report["kinds"].values()) == report["count"] for report in reports)
