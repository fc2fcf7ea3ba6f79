"""Reading request bodies: how large, how slow, and how many bytes of them at once."""

from __future__ import annotations

import asyncio
import io
from types import TracebackType

from aiohttp import web

from gateway.errors import InvalidRequest, Overloaded, RequestTimeout, RequestTooLarge, UnsupportedMediaType

SLOWEST = 1024
"""Bytes a second that a body must bring on average over `WINDOW`."""
WINDOW = 15.0
"""Seconds over which a body's pace is judged."""
FREE = 64 * 1024
"""A body up to this size is read before anything is known of its sender, and is not counted in the pool."""

FAULTS = (InvalidRequest, RequestTimeout, RequestTooLarge, UnsupportedMediaType)
"""What can be wrong with a body. None of it is told to a caller whose credential is unknown."""


class Pool:
    """The memory that all bodies together may take, in bytes."""

    def __init__(self, size: int) -> None:
        self._free = size

    def take(self, amount: int) -> None:
        """Takes a share. Raises Overloaded when there is not enough left."""
        if amount > self._free:
            raise Overloaded("Too many large requests are in flight. Try again in a moment.", retry_after=1.0)
        self._free -= amount

    def give_back(self, amount: int) -> None:
        """Gives a share back."""
        self._free += amount

    @property
    def free(self) -> int:
        """Bytes left."""
        return self._free


class Share:
    """What one request has taken from the pool; given back at the end of a `with`, or before."""

    __slots__ = ("_amount", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._amount = 0

    def grow(self, size: int) -> None:
        """Makes the share large enough for a body of this size. Raises Overloaded."""
        if size > FREE and size > self._amount:
            self._pool.take(size - self._amount)
            self._amount = size

    def release(self) -> None:
        """Gives it all back."""
        if self._amount:
            self._pool.give_back(self._amount)
            self._amount = 0

    def __enter__(self) -> Share:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def check_head(request: web.BaseRequest, limit: int) -> None:
    """What the headers alone say about a body. Raises RequestTooLarge, UnsupportedMediaType.

    limit: bytes that a body may have.
    """
    length = request.content_length
    if length is not None and length > limit:
        raise too_large(limit)
    encoding = request.headers.get("Content-Encoding")
    if encoding is not None and encoding.strip().lower() not in {"", "identity"}:
        raise UnsupportedMediaType("The body must not be compressed. Send it without Content-Encoding.")


def is_large(request: web.BaseRequest) -> bool:
    """Whether the body is to be read only after a look at the token: above 64 KiB, of unknown length, or waiting for a sign."""
    if request.headers.get("Expect") is not None:
        return True
    length = request.content_length
    if length is None:
        return request.body_exists and not request.content.is_eof()
    return length > FREE


async def read(request: web.BaseRequest, *, limit: int, share: Share) -> bytes:
    """The whole body.

    limit: bytes that it may have. share: grows with it.
    Raises RequestTooLarge, RequestTimeout when it comes too slowly, Overloaded when the pool is empty.
    """
    share.grow(min(request.content_length or 0, limit))
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    content = request.content
    if content.is_eof():
        data = content.read_nowait()
        if len(data) > limit:
            raise too_large(limit)
        return data
    try:
        return await _read_slowly(request, limit, share)
    except TimeoutError:
        raise RequestTimeout(
            f"The body came too slowly: less than {SLOWEST} bytes a second over {WINDOW:.0f} seconds."
        ) from None
    except web.RequestPayloadError:
        raise InvalidRequest("The body is not what its headers announce.") from None


async def _read_slowly(request: web.BaseRequest, limit: int, share: Share) -> bytes:
    content = request.content
    # It grows in place and gives its buffer away: a list of parts took the memory of the body twice when it was joined.
    whole = io.BytesIO()
    size = fresh = 0
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(WINDOW) as deadline:
        while True:
            part = await content.readany()
            if not part:
                return whole.getvalue()
            whole.write(part)
            size += len(part)
            if size > limit:
                raise too_large(limit)
            share.grow(size)
            fresh += len(part)
            if fresh >= SLOWEST * WINDOW:
                fresh = 0
                deadline.reschedule(clock() + WINDOW)


def too_large(limit: int) -> RequestTooLarge:
    """The refusal of a body above the limit, in bytes."""
    return RequestTooLarge(f"The body is larger than {limit} bytes.")
