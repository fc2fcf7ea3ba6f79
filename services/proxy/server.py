"""The HTTP server beneath the edge: aiohttp's protocol with our limits, and with nothing of a request in its error pages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from gateway.errors import InvalidRequest, RequestTimeout
from gateway.ids import uuid7
from gateway.process.logs import get_logger
from services.proxy import errors

HEADER_TIME = 10.0
"""Seconds from the first byte of a request to the last of its head."""
KEEPALIVE = 75.0
"""Seconds that an idle connection is kept."""
MAX_TARGET = 8192
"""Bytes of a request line."""
MAX_FIELD = 8190
"""Bytes of a header."""
MAX_FIELDS = 128
READ_AHEAD = 64 * 1024
LINGER = 1.0
"""Seconds that a caller has to read an answer which came before his body was read."""
LINGER_BYTES = 64 * 1024
"""Bytes of an unread body that are taken in, so that the connection can go on."""

_VERSIONS = (HttpVersion11, HttpVersion10)

_log = get_logger(__name__)


class EdgeServer(web.Server):
    """Connections of applications.

    handler: answers a request. most: connections at once, those included whose handshake goes on; what comes above is closed.
    """

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], *, most: int) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.most = most
        self.handshakes: set[asyncio.Task[None]] = set()
        """Connections that are no requests' yet: `TlsSite` fills it."""

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's own parameter
        """Ends all connections; those with a request have so many seconds."""
        for handshake in tuple(self.handshakes):
            handshake.cancel()
        await asyncio.gather(*self.handshakes, return_exceptions=True)
        await super().shutdown(timeout)

    def __call__(self) -> RequestHandler:
        """A protocol for a new connection."""
        return EdgeProtocol(
            self,
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

    @property
    def open_connections(self) -> int:
        """How many connections there are, those included whose handshake goes on."""
        return len(self._connections) + len(self.handshakes)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another one."""
        return self.open_connections >= self.most


class EdgeProtocol(RequestHandler):
    """One connection."""

    __slots__ = ("_head_timer", "_manager_of_ours")

    def __init__(self, manager: EdgeServer, **options: Any) -> None:
        super().__init__(manager, **options)
        self._manager_of_ours = manager
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes a connection, or closes it when there are too many."""
        super().connection_made(transport)
        if len(self._manager_of_ours.connections) > self._manager_of_ours.most:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Lets go of a connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes; from the first of a head on, the rest of it has its time."""
        super().data_received(data)
        waiter = self._waiter
        if self._messages or self._request_in_progress or (waiter is not None and waiter.done()):
            if self._head_timer is not None:
                self._stop_timer()
        elif data and self._head_timer is None and not self._force_close:
            self._head_timer = asyncio.get_running_loop().call_later(HEADER_TIME, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport is not None and not self._request_in_progress:
            request_id = uuid7()
            body = errors.body(RequestTimeout(f"The head of the request took longer than {HEADER_TIME:.0f} seconds."))
            head = (
                "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
                f"Server: {errors.SERVER_NAME}\r\nx-request-id: {request_id}\r\nrequest-id: {request_id}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answers what cannot be read as HTTP, in our own words: aiohttp's would repeat the line at fault."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if status >= 500:
            _log.error("edge_failed", error=type(exc).__name__, exc_info=exc)
        fault = exc if status >= 500 and exc is not None else InvalidRequest("This is not a valid HTTP request.")
        response = errors.answer(fault, request_id=uuid7(), headers={"Connection": "close"})
        if isinstance(exc, LineTooLong):
            # The two limits differ by two bytes, so that the limit tells which line it was.
            response.set_status(414 if MAX_TARGET in exc.args else 431)
        elif "many" in str(exc):
            response.set_status(431)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Logs a failure without the request that met it."""
        error = kw.get("exc_info")
        _log.error("connection_failed", error=type(error).__name__)


def is_plainly_framed(request: web.BaseRequest) -> bool:
    """Whether no other server could read the bounds of this request in another way, though the parser let it pass."""
    coding = request.headers.get("Transfer-Encoding")
    return request.version in _VERSIONS and (coding is None or coding.strip().lower() == "chunked")


def check_framing(request: web.BaseRequest) -> None:
    """Raises InvalidRequest unless a request is plainly framed."""
    if not is_plainly_framed(request):
        raise InvalidRequest("This is not a valid HTTP request.")


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
