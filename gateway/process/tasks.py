"""Tasks that go on for as long as their process: a fault in one round ends that round and not the task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
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


def keep_looking(look: Callable[[], None], *, every: float, stop: threading.Event) -> None:
    """Calls a function at a pace until `stop` is set, for a thread. An exception ends one look, and is logged.

    every: seconds between two looks.
    """
    while not stop.wait(every):
        try:
            look()
        except Exception:
            _log.exception("task_failed", task=look.__qualname__)
