"""How a service ends: not ready at once, a pause in which it still takes calls, then only those that run, then nothing.

SIGTERM and SIGINT mean the same. The second one cuts what still runs; a third one kills, as if nobody had listened.
"""

from __future__ import annotations

import asyncio
import queue
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, Protocol, TypeVar

from gateway.process import logs

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
READY_EVERY: Final = 1.0
"""Seconds between two looks at whether a service is still ready."""
READY_AGAIN_EVERY: Final = 0.2
"""The same while it is not: its clients leave it out until it says otherwise."""

_CUT_POLL = 0.05
_CUT_PATIENCE = 2.0  # seconds for cancelled calls to notice it

_log = logs.get_logger(__name__)
_T = TypeVar("_T")


class StoppableServer(Protocol):
    """What `gateway.rpc.server.Server` offers here."""

    def start(self) -> None:
        """Starts to answer."""
        ...

    def set_serving(self, serving: bool) -> None:
        """Says whether it is ready."""
        ...

    def stop(self, grace: float | None) -> threading.Event:
        """Takes no more calls; the event is set when none is left, at the latest after `grace` seconds."""
        ...


def serve_until_signal(
    server: StoppableServer, *, lame_duck: float, drain: float, ready: Callable[[], bool] = lambda: True
) -> bool:
    """Starts a server, serves until a signal, then stops it in order. To be called in the main thread.

    lame_duck: seconds after the signal in which calls are still taken, while health already says NOT_SERVING.
    drain: seconds that running calls then have at the most; it returns as soon as none is left.
    ready: asked every second, and more often while it is not; health follows it.
    Returns whether every call came to its end; False when some were cut.
    """
    with _received() as signals:
        server.start()
        number: int | None = None
        while number is None:
            serving = _is(ready)
            server.set_serving(serving)
            number = _next(signals, READY_EVERY if serving else READY_AGAIN_EVERY)
        _log.info("stopping", signal=signal.Signals(number).name, lame_duck=lame_duck, drain=drain)
        server.set_serving(False)
        again = _next(signals, lame_duck)
        started = time.monotonic()
        done = server.stop(0 if again else drain)
        while again is None and not done.wait(_CUT_POLL):
            again = _next(signals, 0)
        finished = again is None and time.monotonic() - started < drain
        if again is not None:
            _log.warning("cut", signal=signal.Signals(again).name)
            server.stop(0).wait(_CUT_PATIENCE)
    _log.info("stopped", finished=finished)
    return finished


class Signals:
    """The signals of an asyncio service as events."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stop = asyncio.Event()
        """Set by the first signal."""
        self.cut = asyncio.Event()
        """Set by the second one."""
        self._loop = loop

    def received(self) -> None:
        """Notes one signal. After the second one the system's own reaction is back, so that a third one kills."""
        if self.stop.is_set():
            self.cut.set()
            self.close()
        self.stop.set()

    def close(self) -> None:
        """Stops listening to signals."""
        for number in SIGNALS:
            self._loop.remove_signal_handler(number)


def install_signals(loop: asyncio.AbstractEventLoop) -> Signals:
    """Turns SIGTERM and SIGINT into events from here on. To be called in the main thread."""
    signals = Signals(loop)
    for number in SIGNALS:
        loop.add_signal_handler(number, signals.received)
    return signals


async def stop_when_told(
    signals: Signals,
    *,
    lame_duck: float,
    drain: float,
    not_ready: Callable[[], None],
    close: Callable[[], Awaitable[None]],
    idle: Callable[[], Awaitable[None]],
) -> bool:
    """Waits for the first signal, then stops an asyncio service in order.

    not_ready: called at once. close: closes the listener, after `lame_duck` seconds in which calls are still taken.
    idle: returns when no call runs any more; it has `drain` seconds.
    Returns whether every call came to its end; False when the second signal or the end of `drain` came first. What is still
    open then is the caller's to cut.
    """
    await signals.stop.wait()
    _log.info("stopping", lame_duck=lame_duck, drain=drain)
    not_ready()
    if lame_duck > 0:
        with suppress(TimeoutError):
            await asyncio.wait_for(signals.cut.wait(), lame_duck)
    await close()
    if signals.cut.is_set():
        return False
    ended = asyncio.ensure_future(idle())
    cut = asyncio.ensure_future(signals.cut.wait())
    await asyncio.wait({ended, cut}, timeout=drain, return_when=asyncio.FIRST_COMPLETED)
    finished = ended.done()
    for task in (ended, cut):
        task.cancel()
    results = await asyncio.gather(ended, cut, return_exceptions=True)
    if finished and isinstance(results[0], BaseException):
        raise results[0]
    _log.info("drained", finished=finished)
    return finished


def unless_stopped(start: Callable[[], _T]) -> _T:
    """Runs what may take long before a service can serve; a signal meanwhile ends the process in order, with 0.

    The first process of a container would not even hear it: there a signal without a handler is dropped.
    """
    before = {number: signal.signal(number, _leave) for number in SIGNALS}
    try:
        return start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    _log.info("stopped before it served", signal=signal.Signals(number).name)
    raise SystemExit(0)


@contextmanager
def _received() -> Iterator[queue.SimpleQueue[int]]:
    """The signals that arrive while the block runs."""
    # The one queue of the library that may be filled from a signal handler: `Event.set` there can wait for itself for ever.
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    count = 0

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        signals.put(number)
        if count > 1:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next(signals: queue.SimpleQueue[int], timeout: float) -> int | None:
    try:
        return signals.get(timeout=timeout) if timeout > 0 else signals.get_nowait()
    except queue.Empty:
        return None


def _is(ready: Callable[[], bool]) -> bool:
    try:
        return bool(ready())
    except Exception as error:
        _log.warning("not ready", exc_info=error)
        return False
