"""Connections to providers: aiohttp's client protocol, with one owner of every wait on an answer.

aiohttp leaves some waits to nobody: a parser error in the middle of a body wakes no reader, its read timeout is not armed when
head and first data come in one packet, and garbage behind an answer takes the answer along. Here each call has one `Call`: it
ends when the answer is whole, when framing or connection fail, when the provider is silent for too long, or when the call's
time is over, and whoever reads gets every byte that came before.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

_HEAD_END: Final = b"\r\n\r\n"


class ProviderConnector(aiohttp.TCPConnector):
    """A pool of connections that speak `ProviderProtocol`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = self._protocol  # type: ignore[assignment]  # a partial there, a method here: both make a protocol

    def _protocol(self) -> ProviderProtocol:
        return ProviderProtocol(asyncio.get_running_loop())


class Call:
    """One call on a connection, and its clocks.

    first_byte: seconds from the request's last byte to the status, and between two bytes of the head. idle: seconds between
    two pieces of the body while we read. total: seconds from now on for everything; until the request is out, whoever sends it
    watches over them. failure: what went wrong; None: nothing.
    """

    __slots__ = (
        "_idle",
        "_loop",
        "_over_at",
        "_protocol",
        "_since",
        "_timer",
        "_wait",
        "content",
        "ended",
        "failure",
        "watched",
    )

    def __init__(self, protocol: ProviderProtocol, *, idle: float, total: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._idle = idle
        self._since = self._loop.time()
        self._over_at = self._since + total
        self._wait = total
        self._timer: asyncio.TimerHandle | None = None
        self.content: StreamReader | None = None
        self.failure: BaseException | None = None
        self.ended = False
        """Whether nothing is waited for any more."""
        self.watched = True
        """Whether the timer knows how long the provider may be silent now."""

    def sent(self, first_byte: float) -> None:
        """The request is out: the provider has so many seconds for its status."""
        if self.content is None:
            self._wait = first_byte
            self.alive()
            self.watch()

    def answers(self, content: StreamReader) -> None:
        """The status is there, and a body may follow. To be followed by `watch`: often that body is here already."""
        self.content = content
        self._wait = self._idle
        self.watched = False
        content.on_eof(self.end)

    def alive(self) -> None:
        """Something came, or we go on reading."""
        self._since = self._loop.time()

    def fail(self, failure: BaseException) -> None:
        """The answer goes no further. Whoever reads gets what came, and then the failure."""
        if self.content is not None and not self.content.is_eof():
            self.failure = failure
            self.content.feed_eof()
        self.end()

    def end(self) -> None:
        """Nothing is waited for any more."""
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self) -> None:
        """Has a timer that fires no later than the provider's time is over."""
        self.watched = True
        if self.ended:
            return
        over = min(self._since + self._wait, self._over_at)
        if self._timer is not None:
            if self._timer.when() <= over:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(over, self._look)

    def _look(self) -> None:
        """Ends the call if a time is over. One timer, moved on when it fires, is cheaper than one a packet."""
        now = self._loop.time()
        if self._protocol.reads_nothing:
            self._since = now  # the caller is slow, not the provider
        silent_at = self._since + self._wait
        if now < self._over_at and now < silent_at:
            self._timer = self._loop.call_at(min(self._over_at, silent_at), self._look)
            return
        text = "the call took too long in all" if now >= self._over_at else "the provider was silent for too long"
        self._protocol.set_exception(aiohttp.SocketTimeoutError(text))


class ProviderProtocol(ResponseHandler):
    """One connection to a provider."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._call: Call | None = None

    @property
    def reads_nothing(self) -> bool:
        """Whether we have stopped reading, as what was read has not been taken yet."""
        return self._reading_paused or self._buffer_paused

    def begin(self, *, idle: float, total: float, **parameters: Any) -> Call:
        """Begins a call. parameters: those of `set_response_params`."""
        self._call = call = Call(self, idle=idle, total=total)
        self.set_response_params(read_timeout=None, **parameters)
        return call

    def data_received(self, data: bytes) -> None:
        """Takes bytes, the head apart from what follows: a fault behind it must not take it along."""
        call = self._call
        if data and call is not None and call.content is not None and not call.ended:
            call.alive()  # by far the most are like this
        elif data:
            if call is None or call.ended:
                self._close_transport()  # nothing was asked for: what comes is the answer to no call
                return
            call.alive()
            while call.content is None and not call.ended:
                end = data.find(_HEAD_END) + len(_HEAD_END)
                if not len(_HEAD_END) <= end < len(data):
                    break
                super().data_received(data[:end])
                data = data[end:]
        super().data_received(data)
        if call is not None and not call.watched:
            call.watch()

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Takes a head. A second answer to one call is thrown away with its connection."""
        call = self._call
        if call is None or call.content is not None:
            self._close_transport()
            return
        message, content = data
        if message.code >= 200:  # earlier ones only announce it
            call.answers(content)
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Ends the call with a failure, whoever waits for what of it."""
        super().set_exception(exc, *cause)
        if self._call is not None:
            self._call.fail(exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Ends the call: well where the answer lasts until the end of the connection and that is an orderly one."""
        call, parser = self._call, self._parser
        self._should_close = True
        if call is not None and call.content is not None and not call.content.is_eof():
            failure = exc
            if failure is None and parser is not None:
                try:
                    parser.feed_eof()
                except Exception as error:
                    failure = error
            self._parser = self._payload = None
            call.fail(failure or aiohttp.ClientPayloadError("the connection ended before the answer did"))
        super().connection_lost(exc)
        if call is not None:
            call.end()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Goes on reading; the provider's silence counts from here.

        aiohttp says so after each piece that is taken. Where we had not stopped there is nothing to do: a tenth of what an
        event costs.
        """
        if not self._reading_paused and not self._buffer_paused:
            return
        if self._call is not None:
            self._call.alive()
        super().resume_reading(resume_parser)

    def _close_transport(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.close()
