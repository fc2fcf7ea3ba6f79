"""Tasks that go on for as long as their process: a fault in one round ends that round and not the task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, ParamSpec

from gateway.process.logs import get_logger

AGAIN: Final = 1.0
"""Seconds after which a task that failed begins anew."""

_P = ParamSpec("_P")
_log = get_logger(__name__)


def survives(task: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, Coroutine[Any, Any, None]]:
    """Has a coroutine function that loops for ever begin anew after an exception, which is logged.

    A beat, a sweep or a sync that stopped until the process is restarted would cost calls their holds.
    """

    @wraps(task)
    async def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        while True:
            try:
                return await task(*args, **kwargs)
            except Exception:
                _log.exception("task_failed", task=task.__qualname__)
            await asyncio.sleep(AGAIN)

    return run


@contextmanager
def looking(look: Callable[[], None], *, every: float, name: str) -> Iterator[None]:
    """A thread that calls a function every so many seconds while the block runs. An exception ends one look, and is logged."""
    stop = threading.Event()
    thread = threading.Thread(target=keep_looking, args=(look,), kwargs={"every": every, "stop": stop}, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def keep_looking(look: Callable[[], None], *, every: float, stop: threading.Event) -> None:
    """Calls a function at a pace until `stop` is set, for a thread. An exception ends one look, and is logged.

    every: seconds between two looks.
    """
    while not stop.wait(every):
        try:
            look()
        except Exception:
            _log.exception("task_failed", task=look.__qualname__)
