"""The way to the providers: send a call; get its status, its headers, its bytes as they come; close it.

What matters for the books is how far a call came when it failed: `NotSent` (the provider cannot have acted on it), `NoStatus`
(it may have) and `BrokenOff` (it answered in part) tell that apart. `upstream_http.py` is the one implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from yarl import URL


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


class Sending:
    """A request's body on its way."""

    __slots__ = ("body", "sent")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.sent = False
        """Whether all of it was handed to the network."""


class Reply(Protocol):
    """A provider's answer, as it comes in. Whoever has it closes it."""

    status: int
    """200 to 599."""
    headers: Mapping[str, str]

    async def read(self) -> bytes:
        """The next bytes of the body as they come; empty at its end. Raises BrokenOff."""
        ...

    async def finish(self) -> None:
        """Ends a call whose answer is whole: the connection is used again if the rest comes at once."""
        ...

    def close(self) -> None:
        """Breaks the call off, if it has not ended."""
        ...


class Upstream(Protocol):
    """Sends calls."""

    async def send(self, url: URL, headers: Mapping[str, str], sending: Sending) -> Reply:
        """Sends a POST and waits for the status. Raises NotSent, NoStatus."""
        ...
