"""The system calls of running processes, with their times, as strace writes them down."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.disks import end_tracer, wait_until_traced

CALLS = "write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,fsync,fdatasync,ftruncate,unlink,unlinkat,rename"
_LINE = re.compile(r"(?P<thread>\d+) +(?P<at>\d+\.\d+) (?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<text>.*)")
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<text>.*)")
_END = re.compile(r"= (?P<result>-?\d+|\?).*?(?:<(?P<took>\d+\.\d+)>)?$")


@dataclass(frozen=True)
class SystemCall:
    """One system call. began, ended: Unix seconds. text: its arguments, files and sockets named."""

    name: str
    text: str
    began: float
    ended: float
    result: int


@dataclass
class Trace:
    """What one group of processes did; `calls` is filled when the tracing is over."""

    file: Path
    calls: list[SystemCall] = field(default_factory=list)

    def of(self, *names: str, holding: str = "") -> list[SystemCall]:
        """The calls of these names that succeeded, with this in their text, in the order of their beginning."""
        return [call for call in self.calls if call.name in names and call.result >= 0 and holding in call.text]


@contextmanager
def traced(processes: Sequence[int], file: Path) -> Iterator[Trace]:
    """Writes down what these processes and all their threads write, sync and remove while the block runs.

    Skips the test where there is no strace, or it may not be used.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    command = ["strace", "-f", "-qq", "-ttt", "-T", "-yy", "-s", "20000", "-o", str(file), "-e", f"trace={CALLS}"]
    command += [argument for process in processes for argument in ("-p", str(process))]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    trace = Trace(file)
    try:
        wait_until_traced(tracer, processes)
        yield trace
    finally:
        end_tracer(tracer)
    trace.calls = sorted(_read(file), key=lambda call: call.began)


def _read(file: Path) -> Iterator[SystemCall]:
    unfinished: dict[str, tuple[float, str, str]] = {}
    with file.open(errors="replace") as lines:
        for line in lines:
            if not (match := _LINE.match(line)):
                continue
            thread, at, rest = match["thread"], float(match["at"]), match["rest"].rstrip()
            if resumed := _RESUMED.match(rest):
                if thread not in unfinished:
                    continue
                began, name, text = unfinished.pop(thread)
                text += resumed["text"]
            elif call := _CALL.match(rest):
                began, name, text = at, call["name"], call["text"]
                if text.endswith("<unfinished ...>"):
                    unfinished[thread] = (began, name, text.removesuffix("<unfinished ...>"))
                    continue
            else:
                continue
            end = _END.search(text[text.rfind(" = ") + 1 :])
            if end is None or end["result"] == "?":
                continue
            yield SystemCall(name, text, began, began + float(end["took"] or 0), int(end["result"]))
