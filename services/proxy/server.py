"""The HTTP server beneath the edge, and what the framing of a request says. One connection is in `protocol.py`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.web_protocol import RequestHandler

from gateway.errors import InvalidRequest
from gateway.process.log_floods import EVERY
from gateway.process.logs import get_logger
from services.proxy.arrivals import Arrivals
from services.proxy.connections import Place, Places, Turns, Unread
from services.proxy.protocol import (
    KEEPALIVE,
    MAX_FIELD,
    MAX_FIELDS,
    MAX_TARGET,
    READ_AHEAD,
    EdgeProtocol,
    Shared,
)

UNREAD = 16 * 1024 * 1024
"""Bytes that unfinished heads, and requests behind an open one, may be over all connections."""
TURN = 0.004
"""Seconds between two pipelined requests, over all connections."""
LINGER = 1.0
"""Seconds that a caller has to read an answer which came before his body was read."""
LINGER_BYTES = 64 * 1024
"""Bytes of an unread body that are taken in, so that the connection can go on."""


_VERSIONS = (HttpVersion11, HttpVersion10)

_log = get_logger(__name__)


class EdgeServer(web.Server):
    """Connections of applications.

    handler: answers a request. places: for connections; what finds none is closed. unread: bytes that unfinished heads and
    requests behind an open one may be together.
    """

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], *, places: Places, unread: int = UNREAD
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.places = places
        self.unread = Unread(unread)
        self.ended: Counter[str] = Counter()
        """How many connections were ended before their time, by reason."""
        self._report: asyncio.TimerHandle | None = None
        self.arrivals = Arrivals(places, self._note_end)
        """Connections that are not served yet."""
        self._shared = Shared(self.unread, Turns(TURN), self._note_end)

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's own parameter
        """Ends all connections; those with a request have so many seconds."""
        if self._report is not None:
            self._report.cancel()
        await self.arrivals.close()
        await super().shutdown(timeout)

    def __call__(self, place: Place) -> RequestHandler:  # type: ignore[override]  # only `Listener` makes connections
        """A protocol for a new connection that has this place."""
        return EdgeProtocol(
            self,
            self._shared,
            place,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE,
            access_log=None,
            max_line_size=MAX_TARGET,
            max_field_size=MAX_FIELD,
            max_headers=MAX_FIELDS,
            lingering_time=0,
            read_bufsize=READ_AHEAD,
            auto_decompress=False,
        )

    def _note_end(self, reason: str) -> None:
        self.ended[reason] += 1
        if self._report is None:
            before = self.ended.copy()
            before[reason] -= 1
            self._report = asyncio.get_running_loop().call_later(EVERY, self._tell_ends, before)

    def _tell_ends(self, before: Counter[str]) -> None:
        self._report = None
        _log.info("connections_ended", **(self.ended - before))

    @property
    def open_connections(self) -> int:
        """How many connections there are, those included that are not served yet."""
        return self.places.taken


def is_plainly_framed(request: web.BaseRequest) -> bool:
    """Whether no other server could read the bounds of this request in another way, though the parser let it pass."""
    coding = request.headers.get("Transfer-Encoding")
    return request.version in _VERSIONS and (coding is None or coding.strip().lower() == "chunked")


def check_framing(request: web.BaseRequest) -> None:
    """Raises InvalidRequest unless a request is plainly framed, and meant for this server rather than for another one."""
    if not is_plainly_framed(request):
        raise InvalidRequest("This is not a valid HTTP request.")
    if request.raw_path[:1] not in {"/", "*"}:
        raise InvalidRequest("The gateway is no proxy. Send the path alone, such as /v1/chat/completions.")


async def answer_early(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Sends an answer to a request whose body was not read, so that the caller gets it.

    A small rest of the body is taken in and the connection goes on. From a large one nothing more is read: the caller gets the
    answer, a moment to read it, and the end.
    """
    content = request.content
    length = request.content_length
    if length is not None and length <= LINGER_BYTES and request.headers.get("Expect") is None:
        try:
            async with asyncio.timeout(LINGER):
                while await content.readany():
                    pass
        except (TimeoutError, web.RequestPayloadError):
            pass
    if content.is_eof():
        return
    response.force_close()
    await response.prepare(request)
    await response.write_eof()
    transport = request.transport
    if transport is not None:
        if transport.can_write_eof():  # not over TLS, where the caller sees the end of the answer by its length
            transport.write_eof()
        await asyncio.sleep(LINGER)


def ends_with(request: web.BaseRequest) -> bool:
    """Whether the connection ends with the answer to this request, as what came behind it cannot be read."""
    protocol = request.protocol
    return isinstance(protocol, EdgeProtocol) and protocol.is_last
