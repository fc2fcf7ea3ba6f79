"""What people enter: a line of standard input, and what of the command line cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from clients.cli.output import USAGE, Failure


@contextmanager
def reading() -> Iterator[None]:
    """Turns what cannot be read into a fault of the command line."""
    try:
        yield
    except (ValueError, ArithmeticError) as fault:  # a date beyond the year 9999 overflows
        raise Failure(str(fault), code=USAGE, reason="usage") from None


def line_of_stdin() -> str:
    """One line of standard input, without its end. Raises Failure where it is empty."""
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise Failure("standard input holds no secret", code=USAGE, reason="usage")
    return line
