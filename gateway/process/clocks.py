"""The clock of a service that decides by the calendar: jumps of the machine's are logged and counted."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from gateway.clock import Clock, SteadyClock
from gateway.process.logs import get_logger

_log = get_logger(__name__)


def steady_clock(wall: Clock, registry: CollectorRegistry) -> SteadyClock:
    """A clock that follows the wall clock, and a jump of it only once that has proved stable. registry: where jumps count."""
    jumps = Counter("gateway_wall_clock_jumps", "Jumps of the machine's wall clock.", registry=registry)

    def tell(seconds: float, *, followed: bool) -> None:
        if followed:
            _log.warning("wall_clock_followed", jump_seconds=round(seconds, 1))
        else:
            jumps.inc()
            _log.warning("wall_clock_jumped", jump_seconds=round(seconds, 1), ignored_for_seconds=SteadyClock.PROOF)

    return SteadyClock(wall, tell=tell)
