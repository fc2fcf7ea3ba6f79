"""The way to the providers: send a call; get its status, its headers, an iterator of bytes; close it.

What matters for the books is how far a call came when it failed: `NotSent` (the provider cannot have acted on it), `NoStatus`
(it may have) and `BrokenOff` (it answered in part) tell that apart.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Mapping
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, AbstractStreamWriter, ResolveResult
from aiohttp.payload import Payload
from yarl import URL

from gateway.process.addresses import AddressRefused, check_resolved
from services.proxy.unpacking import Unpacker, UnpackError

KEEPALIVE = 15.0
"""Seconds that an idle connection is kept."""
MAX_HEADER = 16 * 1024
"""Bytes that a line of a provider's head may have."""
READ_AHEAD = 64 * 1024
"""Bytes that are read before the caller has taken what came before; twice that can be in memory."""
LEFTOVER = 64 * 1024
_WRITE = 64 * 1024


class UpstreamFailure(Exception):
    """A call that came to no good end. late: whether time ran out. The text is for the log."""

    def __init__(self, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.late = late


class NotSent(UpstreamFailure):
    """There was no connection, or the request did not go out whole."""


class NoStatus(UpstreamFailure):
    """The request went out whole, and no readable status came back."""


class BrokenOff(UpstreamFailure):
    """A status came back, and then not all of the answer."""


class Sending(Payload):
    """A request's body on its way. `sent` tells whether all of it was handed to the network."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body, content_type="application/json")
        self._size = len(body)
        self.is_small = len(body) <= _WRITE
        self.sent = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text."""
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Writes the body, at the pace at which the provider takes it."""
        body: bytes = self._value
        if self.is_small:
            await writer.write(body)
        else:
            view = memoryview(body)
            for start in range(0, len(body), _WRITE):
                await writer.write(view[start : start + _WRITE])
                await writer.drain()
        self.sent = True

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Writes the body; its length is always the one announced."""
        await self.write(writer)


class Reply(Protocol):
    """A provider's answer, as it comes in."""

    status: int
    headers: Mapping[str, str]

    async def read(self) -> bytes:
        """The next bytes of the body as they come; empty at its end. Raises BrokenOff."""
        ...

    async def finish(self) -> None:
        """Lets the connection be used again if the answer is at its end, or comes to it at once."""
        ...

    def close(self) -> None:
        """Breaks the call off, if it has not ended."""
        ...


class Upstream(Protocol):
    """Sends calls."""

    async def send(self, url: URL, headers: Mapping[str, str], sending: Sending) -> Reply:
        """Sends a POST and waits for the status. Raises NotSent, NoStatus."""
        ...


class _HttpReply:
    """A reply by aiohttp."""

    __slots__ = ("_response", "_unpacker", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        encoding = response.headers.get("Content-Encoding")
        self._unpacker = Unpacker(encoding) if encoding is not None else None

    async def read(self) -> bytes:
        try:
            if self._unpacker is None:
                return await self._response.content.readany()
            while not (piece := self._unpacker.take()):
                data = await self._response.content.readany()
                if not data:
                    self._unpacker.end()
                    break
                self._unpacker.feed(data)
        except (aiohttp.ClientError, OSError) as error:
            raise BrokenOff(_describe(error), late=isinstance(error, TimeoutError)) from error
        except UnpackError as error:
            raise BrokenOff(str(error)) from error
        return piece

    async def finish(self) -> None:
        content, left = self._response.content, LEFTOVER
        try:
            if not content.at_eof():
                async with asyncio.timeout(1.0):
                    while left > 0 and (data := await content.readany()):
                        left -= len(data)
        except (aiohttp.ClientError, OSError):
            pass  # the answer is whole already; the connection is closed below
        self._response.close()  # a connection whose answer has ended went back to the pool before this

    def close(self) -> None:
        self._response.close()


class HttpUpstream:
    """An upstream over one aiohttp session: no redirects, no cookies, no proxies of the environment, nothing unpacked.

    connect, first_byte, idle: seconds until a connection stands, until a status comes, between two pieces of an answer.
    allowed: for each host whether it may be at any address (`allow_address` of its provider).
    """

    def __init__(self, *, connect: float, first_byte: float, idle: float, allowed: Mapping[str, bool]) -> None:
        self._connect = connect
        self._first_byte = first_byte
        self._idle = idle
        self._allowed = allowed
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Opens the session; needs the running loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ttl_dns_cache=10, keepalive_timeout=KEEPALIVE, resolver=CheckingResolver(self._allowed)
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect, sock_read=self._first_byte),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_AHEAD,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
            skip_auto_headers=("User-Agent",),
        )

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()

    async def send(self, url: URL, headers: Mapping[str, str], sending: Sending) -> Reply:
        """Sends a POST and waits for the status. Raises NotSent, NoStatus."""
        try:
            if sending.is_small:  # it fits into the network's buffers: connecting and waiting have their own limits
                response = await self._post(url, headers, sending)
            else:
                async with asyncio.timeout(self._connect + self._first_byte):
                    response = await self._post(url, headers, sending)
        except (aiohttp.ClientError, OSError, AddressRefused) as error:
            late = isinstance(error, TimeoutError)
            if sending.sent:
                raise NoStatus(_describe(error), late=late) from error
            raise NotSent(_describe(error), late=late) from error
        connection = response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = self._idle
        return _HttpReply(response)

    def _post(self, url: URL, headers: Mapping[str, str], sending: Sending) -> Awaitable[aiohttp.ClientResponse]:
        assert self._session is not None
        return self._session.post(url, data=sending, headers=headers, allow_redirects=False)


class CheckingResolver(AbstractResolver):
    """Resolves names and refuses the addresses that a provider may not be at.

    allowed: for each host whether any address is good. A host that is not in it is none of ours.
    """

    def __init__(self, allowed: Mapping[str, bool]) -> None:
        self._allowed = allowed
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of a host. Raises OSError when it has none that the gateway may connect to."""
        found = await self._resolver.resolve(host, port, family)
        for result in found:
            try:
                check_resolved(host, result["host"], self._allowed.get(host, False))
            except AddressRefused as refusal:
                raise OSError(None, str(refusal)) from None
        return found

    async def close(self) -> None:
        """Lets go of the resolver beneath."""
        await self._resolver.close()


def _describe(error: BaseException) -> str:
    """An error in one line for the log: its kind and its text, without what a provider sent."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{type(error).__name__}: the head of the answer cannot be read"
    return f"{type(error).__name__}: {error}"[:300]
