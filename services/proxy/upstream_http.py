"""The way to the providers over HTTP/1.1: aiohttp's connections and its parser, and as little as can be between them and us.

aiohttp's client does much for a call that a gateway must not do (redirects, cookies, proxies of the environment, unpacking,
netrc) or does once for all calls (addresses, headers). Going to its connector directly leaves that out, and with it more than
half of the CPU that a call upstream costs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from yarl import URL

from gateway.process.addresses import AddressRefused, check_resolved
from services.proxy.unpacking import Unpacker, UnpackError
from services.proxy.upstream import BrokenOff, NoStatus, NotSent, Reply, Sending
from services.proxy.upstream_protocol import Call, ProviderConnector, ProviderProtocol

KEEPALIVE = 15.0
"""Seconds that an idle connection is kept."""
MAX_HEADER = 16 * 1024
"""Bytes that a line of a provider's head may have."""
MAX_HEADERS = 200
READ_AHEAD = 64 * 1024
"""Bytes that are read before the caller has taken what came before; twice that can be in memory."""
LEFTOVER = 64 * 1024
"""Bytes behind the end of an answer that are read for the sake of the connection."""
_PIECE = 64 * 1024
_DESTINATIONS = 256

# Timeouts are OSErrors; a connection that ends while its answer is read raises ClientError or, from the parser, its own kind.
_NETWORK = (aiohttp.ClientError, HttpProcessingError, OSError)


class _HttpReply:
    """A reply, and the connection that it comes over."""

    __slots__ = ("_call", "_connection", "_content", "_unpacker", "headers", "status")

    def __init__(
        self, status: int, headers: Mapping[str, str], content: StreamReader, connection: Connection, call: Call
    ) -> None:
        self.status = status
        self.headers = headers
        self._content = content
        self._connection = connection
        encoding = headers.get("Content-Encoding")
        self._unpacker = Unpacker(encoding) if encoding is not None else None
        self._call = call
        content.on_eof(connection.release)

    async def read(self) -> bytes:
        if self._unpacker is None:
            return await self._content.readany() or self._end()
        try:
            while not (piece := self._unpacker.take()):
                data = await self._content.readany() or self._end()
                if not data:
                    self._unpacker.end()
                    break
                self._unpacker.feed(data)
        except UnpackError as error:
            raise BrokenOff(str(error)) from None
        return piece

    def _end(self) -> bytes:
        """The end of the body, where it came to one."""
        failure = self._call.failure
        if failure is not None:
            raise BrokenOff(_describe(failure), late=isinstance(failure, TimeoutError))
        return b""

    async def finish(self) -> None:
        left = LEFTOVER
        try:
            if not self._content.at_eof():
                async with asyncio.timeout(1.0):
                    while left > 0 and (data := await self._content.readany()):
                        left -= len(data)
        except TimeoutError:
            pass  # the answer is whole already
        finally:
            self.close()

    def close(self) -> None:
        self._call.end()
        self._connection.close()  # one that is released already is none of ours any more


class _Destination:
    """What is the same for all calls to one URL."""

    __slots__ = ("address", "head")

    def __init__(self, url: URL) -> None:
        self.address = aiohttp.ClientRequest("POST", url, loop=asyncio.get_running_loop())
        self.head = f"POST {url.raw_path_qs} HTTP/1.1\r\nHost: {self.address.headers['Host']}\r\n"


class HttpUpstream:
    """An upstream with a pool of connections.

    connect, first_byte, idle: seconds until a connection stands, until a status comes, between two pieces of an answer.
    total: seconds from the request to the end of the answer.
    allowed: for each host whether it may be at any address (`allow_address` of its provider).
    """

    def __init__(self, *, connect: float, first_byte: float, idle: float, total: float, allowed: Mapping[str, bool]) -> None:
        self._first_byte = first_byte
        self._idle = idle
        self._total = total
        self._longest = connect + first_byte
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect)
        self._resolver = CheckingResolver(allowed)
        self._connector: ProviderConnector | None = None
        self._destinations: dict[URL, _Destination] = {}

    async def start(self) -> None:
        """Opens the pool; needs the running loop."""
        self._connector = ProviderConnector(limit=0, ttl_dns_cache=10, keepalive_timeout=KEEPALIVE, resolver=self._resolver)

    async def close(self) -> None:
        """Closes all connections."""
        if self._connector is not None:
            await self._connector.close()
        await self._resolver.close()

    async def send(self, url: URL, headers: Mapping[str, str], sending: Sending) -> Reply:
        """Sends a POST and waits for the status. Raises NotSent, NoStatus.

        headers: names and values of plain text, without line ends.
        """
        try:
            if len(sending.body) <= _PIECE:  # it fits into the network's buffers: writing it cannot take long
                return await self._send(url, headers, sending)
            async with asyncio.timeout(self._longest):
                return await self._send(url, headers, sending)
        except _NETWORK as error:
            late = isinstance(error, TimeoutError)
            # `from None`: an exception that keeps another one keeps its frames, and with them the body, alive.
            raise (NoStatus if sending.sent else NotSent)(_describe(error), late=late) from None

    async def _send(self, url: URL, headers: Mapping[str, str], sending: Sending) -> Reply:
        assert self._connector is not None
        destination = self._destinations.get(url)
        if destination is None:
            if len(self._destinations) >= _DESTINATIONS:
                self._destinations.clear()
            destination = self._destinations[url] = _Destination(url)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"{destination.head}{lines}Content-Length: {len(sending.body)}\r\n\r\n".encode()
        connection = await self._connector.connect(destination.address, [], self._timeout)
        protocol = connection.protocol
        assert isinstance(protocol, ProviderProtocol)
        call: Call | None = None
        try:
            call = protocol.begin(
                idle=self._idle,
                total=self._total,
                read_until_eof=True,
                auto_decompress=False,
                read_bufsize=READ_AHEAD,
                max_line_size=MAX_HEADER,
                max_field_size=MAX_HEADER,
                max_headers=MAX_HEADERS,
            )
            if len(sending.body) <= _PIECE:
                _transport(protocol).write(head + sending.body)
                sending.sent = True
                call.sent(self._first_byte)
                return await self._answer(connection, protocol, call, None)
            # Beside the answer, as a provider may refuse a large body before it has all of it.
            writing = asyncio.create_task(self._write(protocol, call, head, sending))
            try:
                return await self._answer(connection, protocol, call, writing)
            finally:
                writing.cancel()
        except BaseException:
            if call is not None:
                call.end()
            connection.close()
            raise

    async def _answer(
        self, connection: Connection, protocol: ProviderProtocol, call: Call, writing: asyncio.Task[None] | None
    ) -> Reply:
        status = 100
        while status < 200:
            message, content = await protocol.read()
            status = message.code
            if status < 100 or status == 101:
                raise aiohttp.ClientError(f"the provider answered with the status {status}, which ends no call")
        if writing is not None and not writing.done():
            protocol.force_close()  # the rest of the body will not come, so nothing else can be sent there
        # HTTP ends at 599, and so do the ledger's rows: what lies above is an answer that nobody can read.
        return _HttpReply(status if status <= 599 else 502, message.headers, content, connection, call)

    async def _write(self, protocol: ProviderProtocol, call: Call, head: bytes, sending: Sending) -> None:
        """Writes a large body at the pace at which the provider takes it. The answer tells what goes wrong."""
        try:
            _transport(protocol).write(head)
            view = memoryview(sending.body)
            for start in range(0, len(view), _PIECE):
                _transport(protocol).write(view[start : start + _PIECE])
                await protocol._drain_helper()
        except _NETWORK:
            return
        sending.sent = True
        call.sent(self._first_byte)


def _transport(protocol: ProviderProtocol) -> asyncio.Transport:
    transport = protocol.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the connection is closed")
    return transport


class CheckingResolver(AbstractResolver):
    """Resolves names and refuses the addresses that a provider may not be at.

    allowed: for each host whether any address is good. A host that is not in it is none of ours.
    """

    def __init__(self, allowed: Mapping[str, bool]) -> None:
        self._allowed = allowed
        self._resolver: AbstractResolver | None = None

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of a host. Raises OSError when it has none that the gateway may connect to."""
        if self._resolver is None:
            self._resolver = aiohttp.ThreadedResolver()
        found = await self._resolver.resolve(host, port, family)
        for result in found:
            try:
                check_resolved(host, result["host"], self._allowed.get(host, False))
            except AddressRefused as refusal:
                raise OSError(None, str(refusal)) from None
        return found

    async def close(self) -> None:
        """Lets go of the resolver beneath."""
        if self._resolver is not None:
            await self._resolver.close()


def _describe(error: BaseException) -> str:
    """An error in one line for the log: its kind and its text, without what a provider sent."""
    if isinstance(error, HttpProcessingError):
        return f"{type(error).__name__}: the answer cannot be read as HTTP"
    text: Any = error
    return f"{type(error).__name__}: {text}"[:300]
