"""What happens when two processes make the same change at the same moment, where several may write at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from peewee import IntegrityError

P = ParamSpec("P")
T = TypeVar("T")


def again_when_raced(change: Callable[P, T]) -> Callable[P, T]:
    """Makes a change once more where another one came in between: now it sees what that one has written, and says so.

    For changes that begin with a look and end with a row that may be there only once.
    """

    @wraps(change)
    def changed(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return change(*arguments, **named)
        except IntegrityError:
            return change(*arguments, **named)

    return changed
