"""What one test measured for its row, beside what was expected; and how large a run is."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

FULL = bool(os.environ.get("GATEWAY_TEST_FULL"))
SEED = int(os.environ.get("GATEWAY_TEST_SEED", "1"))
PATIENCE = 1 if FULL else 5  # a tenth is run beside other tests, on a machine that may be slow: its times are no figures


@dataclass
class Figure:
    """One measured value. `ok` None: it was expected to be nothing in particular. `brief`: it stands in the summary, too."""

    name: str
    value: Any
    expected: str = ""
    ok: bool | None = None
    brief: bool = True


@dataclass
class Proof:
    """Collects figures; what does not hold fails the test at its end, so that the report has all of them.

    row: of the register. case: what sets this test apart from others of its row, such as the database.
    """

    row: str
    case: str
    chance: random.Random
    figures: list[Figure] = field(default_factory=list)
    _brief: bool = True

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What every row measures in the same way: in the report, but in its summary only where it does not hold."""
        self._brief = False
        yield
        self._brief = True

    @staticmethod
    def size(full: int, tenth: int | None = None) -> int:
        """How many or how long: as the row says, or a tenth of it (at least 1) in `make test`."""
        if FULL:
            return full
        return max(1, full // 10) if tenth is None else tenth

    def note(self, name: str, value: Any) -> None:
        """A figure that is expected to be nothing in particular."""
        self.figures.append(Figure(name, value, brief=self._brief))

    def holds(self, name: str, value: Any, expected: str, ok: bool) -> None:
        """A figure, what it was to be in words, and whether it is."""
        self.figures.append(Figure(name, value, expected, bool(ok), self._brief))

    def equals(self, name: str, value: Any, expected: Any) -> None:
        self.holds(name, value, f"= {expected}", value == expected)

    def between(self, name: str, value: float, least: float, most: float) -> None:
        self.holds(name, _short(value), f"{least} to {most}", least <= value <= most)

    def at_most(self, name: str, value: float, most: float) -> None:
        self.holds(name, _short(value), f"<= {most}", value <= most)

    def at_least(self, name: str, value: float, least: float) -> None:
        self.holds(name, _short(value), f">= {least}", value >= least)

    def within(self, name: str, seconds: float, most: float) -> None:
        """A time. In `make test` it may be `PATIENCE` times as long."""
        self.holds(name, f"{seconds:.2f} s", f"<= {most} s", seconds <= most * PATIENCE)

    def only(self, name: str, values: Any, allowed: Collection[Any]) -> None:
        """Counts by kind, of which only some may occur."""
        self.holds(name, dict(values), f"only {', '.join(map(str, sorted(allowed)))}", set(values) <= set(allowed))

    @property
    def failed(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.ok is False]

    def verdict(self) -> None:
        """Raises AssertionError with every figure that is not as expected, and when nothing was expected at all."""
        assert any(figure.ok is not None for figure in self.figures), f"{self.row} expects nothing"
        wrong = [f"{figure.name}: {figure.value}, expected {figure.expected}" for figure in self.failed]
        assert not wrong, f"{self.row} ({self.case})\n" + "\n".join(wrong)


def _short(value: float) -> float:
    return round(value, 4) if isinstance(value, float) else value
