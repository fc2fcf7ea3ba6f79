"""What the commands say, and how they end: one clear line on failure, JSON where it is asked for, tables on a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

OK = 0
FAULT = 1
USAGE = 2
UNAVAILABLE = 3
REFUSED = 4
INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 done; 1 it failed or something is wrong; 2 the command line or a setting is wrong; "
    "3 a service or the database is away, try again; 4 explain: the call is refused."
)

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Answer in JSON.")]
"""The switch that every command has."""


class Failure(Exception):
    """Ends the command: one line for people, an exit code, and a word for programs."""

    def __init__(self, message: str, *, code: int = FAULT, reason: str = "failed") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason


def styled() -> bool:
    """Whether output may have colours and other styles: on a terminal, unless NO_COLOR says otherwise."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def tell(text: str) -> None:
    """Prints lines to standard output, at once."""
    print(text, flush=True)


def tell_json(value: Mapping[str, Any]) -> None:
    """Prints one JSON object on one line, at once."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def warn(text: str) -> None:
    """Prints a line to standard error."""
    print(f"gateway: {text}", file=sys.stderr, flush=True)


def nobody_reads() -> None:
    """Sends standard output nowhere, after its reader went away: what is still in the buffer would raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(failure: Failure, *, as_json: bool) -> int:
    """Prints a failure and gives its exit code. In JSON it also stands on standard output, for programs."""
    line = " ".join(failure.message.split())
    if as_json:
        tell_json({"error": {"code": failure.reason, "message": line}})
    warn(line)
    return failure.code


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows: a table on a terminal, else one line a row with tabs between the columns and no headings."""
    if not sys.stdout.isatty():
        for row in rows:
            tell("\t".join(_plain(cell) for cell in row))
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal pays for it
    from rich.table import Table  # noqa: PLC0415 - same
    from rich.text import Text  # noqa: PLC0415 - same

    drawn = Table(*headings, box=None, pad_edge=False, header_style="bold" if styled() else "")
    for row in rows:
        drawn.add_row(*(Text(_plain(cell)) for cell in row))
    Console(no_color=not styled()).print(drawn)


def fields(pairs: Mapping[str, str]) -> None:
    """Prints one thing, a line a field."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        tell(f"{name.ljust(width)}  {_plain(value)}".rstrip())


def _plain(text: str) -> str:
    """The text without characters that would move a terminal's cursor or colours."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
