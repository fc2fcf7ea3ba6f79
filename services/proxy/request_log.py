"""The log of requests: a line for each admitted call, and so many for the others that a flood of them fills no disk."""

from __future__ import annotations

import asyncio

from gateway.process.log_floods import EVERY, LogFloods
from gateway.process.logs import get_logger
from services.proxy.exchange import Exchange

_log = get_logger(__name__)


class RequestLog:
    """Writes lines of requests that have ended.

    Of requests without an admitted call, most of them refusals, an address has 30 lines and one more each second, all addresses
    together 300 and 20 a second. `requests_summarized` has the number of those without a line; metrics count all.
    """

    def __init__(self) -> None:
        self._floods = LogFloods(lambda **facts: _log.info("requests_summarized", **facts))
        self._timer: asyncio.TimerHandle | None = None

    def write(self, exchange: Exchange, status: int, reason: str, now: float) -> None:
        """Notes a request. reason: of a refusal; empty: there was none. now: the loop's time."""
        if exchange.ticket is None and not self._floods.admits(exchange.address, reason or str(status)):
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(EVERY, self.flush)
            return
        _log.info("request", **exchange.log_fields(status, reason, now))

    def flush(self) -> None:
        """Reports the requests without a line that were not reported yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._floods.flush()
