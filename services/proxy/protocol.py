"""One connection of the edge: aiohttp's protocol with our limits, and with nothing of a request in its error pages."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from gateway.errors import GatewayError, InvalidRequest, Overloaded, RequestTimeout
from gateway.ids import uuid7
from gateway.process.logs import get_logger
from services.proxy import errors
from services.proxy.connections import Place, Turns, Unread
from services.proxy.half_close import HalfClosed
from services.proxy.writes import WriteWatch

HEADER_TIME = 10.0
"""Seconds from the first byte of a request to the last of its head."""
KEEPALIVE = 75.0
"""Seconds that an idle connection is kept."""
MAX_TARGET = 8192
"""Bytes of a request line."""
MAX_FIELD = 8190
"""Bytes of a header."""
MAX_FIELDS = 128
MAX_HEAD = 64 * 1024
"""Bytes of a whole head."""
MAX_PIECES = 256
"""Packets that a head may come in: each costs the same, however little is in it."""
READ_AHEAD = 64 * 1024
PIPELINE_AHEAD = 16 * 1024
"""Bytes of requests behind an open one that are taken in before reading pauses."""
WRITE_AHEAD = 64 * 1024
"""Bytes of answers that wait in memory before the next one has to wait itself."""
MAX_PIPELINED = 100
"""Requests that a connection may send before the answer to the one before them; with the last of them it ends."""

ENDS = ("no_place", "gave_way", "head_late", "head_too_large", "head_in_pieces", "unread", "pipelined", "write_late")
"""Why a connection was ended before its time. `docs/metrics.md` says what each means."""

_BLANK_LINE = b"\r\n\r\n"
_STATUS_LINES = {408: "408 Request Timeout", 431: "431 Request Header Fields Too Large", 503: "503 Service Unavailable"}

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all connections of a server share. ended: is told why a connection was ended before its time, in a word."""

    unread: Unread
    turns: Turns
    ended: Callable[[str], None]


class EdgeProtocol(RequestHandler):
    """One connection.

    The parser gets one request at a time, cut where its head ends: so the size and the age of a head that has begun are known,
    and what a caller sends before the answer waits here as plain bytes.
    """

    __slots__ = (
        "_ahead",
        "_chunks",
        "_full",
        "_half_closed",
        "_head",
        "_head_timer",
        "_held_up",
        "_left",
        "_open",
        "_pieces",
        "_pipelined",
        "_place",
        "_seam",
        "_shared",
        "_watch",
        "_writer",
        "_written",
    )

    def __init__(self, manager: web.Server, shared: Shared, place: Place, **options: Any) -> None:
        super().__init__(manager, **options)
        self._shared = shared
        self._place = place
        self._head_timer: asyncio.TimerHandle | None = None
        self._head = self._pieces = 0  # bytes of a head that has begun and not ended, and the packets that they came in
        self._seam = b""  # the last bytes that came, as the end of a head may be cut
        self._open = False  # whether there is a request that is not answered
        self._left = 0  # bytes of its body that are still to come
        self._chunks: StreamReader | None = None  # its body, where it comes in chunks and has not ended
        self._ahead = bytearray()  # what came behind it
        self._pipelined = 0
        self._full = False  # whether as many bytes of answers wait as may
        self._held_up = False  # whether what is ahead waits until they do not
        self._watch: WriteWatch | None = None
        self._writer: AbstractStreamWriter | None = None
        self._half_closed: HalfClosed | None = None
        self._written = 0  # bytes of the answers before this writer's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes a connection."""
        super().connection_made(transport)
        limit_buffers(cast("asyncio.Transport", transport))
        self._place.waits(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Lets go of a connection."""
        self._stop_timer()
        self._ahead.clear()
        self._shared.unread.drop(self)
        if self._watch is not None:
            self._watch.stop()
        if self._half_closed is not None:
            self._half_closed.stop()
        self._place.leave()
        super().connection_lost(exc)

    # -- what comes in -------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Takes bytes, request by request."""
        if not data:  # the parser goes on with what it kept while the reader of the body was behind
            queued = len(self._messages)
            super().data_received(data)
            self._look_for_the_last_chunk(queued)
            return
        while data and not self._close and not self._force_close:
            if self._left:
                part = data[: self._left]
                self._left -= len(part)
                super().data_received(part)
                data = data[len(part) :]
            elif self._chunks is not None:
                queued = len(self._messages)
                super().data_received(data)
                self._seam = (self._seam + data[-4:])[-4:]
                self._look_for_the_last_chunk(queued)
                return
            elif self._open or self._ahead:
                self._keep(data)
                return
            else:
                data = self._take_head(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # aiohttp's returns nothing: the transport closes
        """Serves what a caller has asked for who sends no more; closes the connection where that is nothing whole."""
        transport = self.transport
        if transport is None or not self._open or self._left or self._chunks is not None:
            return False
        if not hasattr(socket, "TCP_INFO") or transport.get_extra_info("sslcontext") is not None:
            return False  # a TLS connection ends in both directions at once, whatever is returned here
        self._half_closed = HalfClosed(transport)
        if self._writer is not None:
            self._probe()
        if not self._ahead:
            self.close()
        return True

    def _probe(self) -> None:
        request = self._current_request
        unanswered = self._writer is not None and not self._writer.output_size
        if self._half_closed is not None and unanswered and request is not None and request.version >= HttpVersion11:
            self._half_closed.probe()

    def _take_head(self, data: bytes) -> bytes:
        """Takes bytes of a head; gives what comes behind it."""
        if not self._head:
            data = data.lstrip(b"\r\n") if data[0] in b"\r\n" else data  # blank lines before a request mean nothing
            if not data:
                return data
        end = self._end_of_head(data)
        part = data[: min(len(data) if end < 0 else end, MAX_HEAD - self._head)]
        queued = len(self._messages)
        super().data_received(part)
        if len(self._messages) > queued:
            self._begin(*self._messages[-1])
            return data[len(part) :]
        self._head += len(part)
        self._pieces += 1
        self._seam = (self._seam + part[-3:])[-3:]
        if self._head >= MAX_HEAD:
            self._refuse(431, InvalidRequest(f"The head of the request is larger than {MAX_HEAD} bytes."), "head_too_large")
        elif self._pieces > MAX_PIECES:
            self._refuse(
                431, InvalidRequest(f"The head of the request came in more than {MAX_PIECES} pieces."), "head_in_pieces"
            )
        else:
            if self._head_timer is None:
                self._head_timer = asyncio.get_running_loop().call_later(HEADER_TIME, self._head_is_late)
            self._shared.unread.hold(self, self._head)
        return b""

    def _end_of_head(self, data: bytes) -> int:
        """Where a head ends in these bytes; -1: not yet."""
        if self._seam:
            at = (self._seam + data[:3]).find(_BLANK_LINE)
            if at >= 0:
                return at + len(_BLANK_LINE) - len(self._seam)
        at = data.find(_BLANK_LINE)
        return at + len(_BLANK_LINE) if at >= 0 else -1

    def _begin(self, message: Any, payload: StreamReader) -> None:
        """Notes a request whose head is whole, or what could not be read as one."""
        self._stop_timer()
        if self._head:
            self._head = self._pieces = 0
            self._shared.unread.drop(self)
        self._seam = b""
        self._open = True
        self._place.works()
        if isinstance(message, RawRequestMessage) and message.path[:1] != "/":
            self._messages[-1] = (message._replace(path=origin_form(message.path)), payload)
        if payload.is_eof() and isinstance(message, RawRequestMessage):
            return
        length = message.headers.get("Content-Length", "") if isinstance(message, RawRequestMessage) else ""
        if length:
            self._left = int(length)
        elif isinstance(message, RawRequestMessage) and message.chunked:
            self._chunks = payload
        else:
            self.close()  # no HTTP, or CONNECT: where another request would begin is not known

    def _look_for_the_last_chunk(self, queued: int) -> None:
        """Notes the end of a body in chunks. queued: how many requests the parser had read before."""
        chunks = self._chunks
        if chunks is None:
            return
        behind = len(self._messages) > queued
        while len(self._messages) > queued:
            self._messages.pop()
        if not chunks.is_eof():
            if behind:
                chunks.set_exception(web.RequestPayloadError("The chunks cannot be read."))
                self.close()
            return
        self._chunks = None
        if behind or self._seam != _BLANK_LINE:
            # The same packet has bytes behind the body. How many of them the parser has read is not known, so the connection
            # ends with this answer, and the answer says so.
            self.close()
        self._seam = b""

    def _keep(self, data: bytes) -> None:
        """Keeps what comes behind an open request."""
        self._ahead += data
        if len(self._ahead) > PIPELINE_AHEAD and not self._buffer_paused:
            self._pause_reading_for_buffer()
        self._shared.unread.hold(self, len(self._ahead))

    def _resume_reading_if_drained(self) -> None:
        """Does nothing: aiohttp would read on when it has begun a request, however much waits behind it."""

    def take_turn(self) -> None:
        """Goes on with a request that came before the answer to the one before it."""
        data = bytes(self._ahead)
        self._ahead.clear()
        self._shared.unread.drop(self)
        if self.transport is None or not data:
            return
        self._pipelined += 1
        self.data_received(data)
        if self._open and self._pipelined >= MAX_PIPELINED:
            self._count("pipelined")
            self.close()
        elif self._buffer_paused and len(self._ahead) <= PIPELINE_AHEAD:
            self._resume_reading_for_buffer()

    async def _handle_request(self, request: web.BaseRequest, *options: Any) -> tuple[web.StreamResponse, bool]:
        """Answers a request, and then looks at what has come behind it."""
        self._writer = request.writer
        self._probe()
        try:
            answered = await super()._handle_request(request, *options)
        finally:
            self._writer = None
            self._written += request.writer.output_size
        if self._left or self._chunks is not None or self._close or not answered[0].keep_alive:
            if self.transport is not None:
                self._watch_writes().close()
            return answered
        self._open = False
        if self._ahead:
            self._held_up = self._full
            if not self._full:
                self._shared.turns.ask(self)
        elif self._half_closed is not None:
            self.close()
        else:
            self._pipelined = 0
            self._place.waits(self)
        return answered

    # -- how a connection ends -------------------------------------------------------------------------------------------------

    @property
    def is_last(self) -> bool:
        """Whether the connection ends with the answer to the open request."""
        return bool(self._close)

    def force_close(self) -> None:
        """Closes the connection; a caller who does not take the rest of an answer has the time of the write rule."""
        if self.transport is not None:
            self._watch_writes().close()
        super().force_close()

    def give_way(self) -> None:
        """Closes an idle connection for another one."""
        self._place.leave()
        self._count("gave_way")
        self.force_close()

    def give_back(self) -> None:
        """Lets go of the bytes of requests that are not open."""
        self._ahead.clear()
        if self._open:
            self._count("unread")
            self.close()
        else:
            fault = Overloaded("Too many requests have begun and not ended. Try again in a moment.", retry_after=1.0)
            self._refuse(503, fault, "unread")

    def _head_is_late(self) -> None:
        self._head_timer = None
        fault = RequestTimeout(f"The head of the request took longer than {HEADER_TIME:.0f} seconds.")
        self._refuse(408, fault, "head_late")

    def _refuse(self, status: int, fault: GatewayError, reason: str) -> None:
        """Answers a head that never became a request, and closes the connection."""
        self._stop_timer()
        self._count(reason)
        if self.transport is not None:
            request_id = uuid7()
            body = errors.body(fault)
            head = (
                f"HTTP/1.1 {_STATUS_LINES[status]}\r\nContent-Type: application/json\r\nConnection: close\r\n"
                f"Server: {errors.SERVER_NAME}\r\nx-request-id: {request_id}\r\nrequest-id: {request_id}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.force_close()

    def _count(self, reason: str) -> None:
        self._shared.ended(reason)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # -- what goes out ---------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Notes that a caller takes answers more slowly than they come."""
        super().pause_writing()
        self._full = True
        self._watch_writes().pause()

    def resume_writing(self) -> None:
        """Notes that the caller has taken most of them."""
        super().resume_writing()
        self._full = False
        self._watch_writes().resume()
        if self._held_up:
            self._held_up = False
            self._shared.turns.ask(self)

    def _watch_writes(self) -> WriteWatch:
        if self._watch is None:
            assert self.transport is not None
            self._watch = WriteWatch(self.transport, self._bytes_written, lambda: self._count("write_late"))
        return self._watch

    def _bytes_written(self) -> int:
        return self._written + (self._writer.output_size if self._writer is not None else 0)

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


def origin_form(target: str) -> str:
    """The path and query of a request target in absolute form, as every server must take it; others stay as they are.

    Whose name it holds makes no difference: the request has come here, and goes nowhere else.
    """
    scheme, found, rest = target.partition("://")
    if not found or scheme.lower() not in {"http", "https"}:
        return target
    end = next((at for at, character in enumerate(rest) if character in "/?#"), len(rest))
    if "@" in rest[:end]:
        return target  # a password has no place there
    path = rest[end:]
    return path if path.startswith("/") else f"/{path}"


def limit_buffers(transport: asyncio.Transport) -> None:
    """Bounds what waits for a caller who does not read: in our memory and in the system's."""
    transport.set_write_buffer_limits(WRITE_AHEAD)
    connection = transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WRITE_AHEAD)
