"""A wall clock that jumps under running processes: `tests/fakes/shifted_clock.c`, compiled and steered."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).resolve().parents[1] / "fakes" / "shifted_clock.c"


def compiled(folder: Path) -> Path:
    """The library, compiled into a folder. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = folder / "shifted_clock.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


class ShiftedClock:
    """The wall clock of those processes that were started with `environment`.

    library: as `compiled` gives it. file: a new one, which holds the shift.
    """

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.seconds = 0.0
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(file)}

    def set(self, seconds: float) -> None:
        """Has the clock go so far before the machine's from now on; below 0: behind it."""
        self.seconds = seconds
        self._file.touch()
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", int(seconds * 1e9)))
