"""Reading bodies as calls without holding up everybody else.

What is small and plain is read on the spot: at most 3 ms, however hostile. Everything else is read in a process of its own,
because a thread would not help: the reader holds the interpreter's lock while it works.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from gateway import text_bound
from gateway.errors import Internal, Overloaded
from gateway.process.logs import get_logger
from services.proxy import strict_json
from services.proxy.body_process import BodyProcess, ProcessEnded
from services.proxy.dialects.openai import ChatCall, read_chat
from services.proxy.json_cost import has_more_exponents, has_more_values

AT_ONCE: Final = 64 * 1024
"""Bytes of a body that is read on the spot, unless it holds very many values."""
AT_ONCE_IF_ASCII: Final = 1024 * 1024
"""The same where all text is ASCII: that is counted as fast as it is copied."""
FEW: Final = 3_000
"""JSON values at the most in a body that is read on the spot; the dearest kind takes 1 us each."""
FEW_EXPONENTS: Final = 1_000
"""Numbers with an exponent at the most; the dearest kind, near the largest double, takes 2 us each."""
IDLE: Final = 30.0
"""Seconds after which the process ends when there is nothing to read."""

_log = get_logger(__name__)


def is_costly(body: bytes) -> bool:
    """Whether a body is not to be read on the spot. Takes 1 ms for the largest that is."""
    size = len(body)
    if size > AT_ONCE_IF_ASCII or (size > AT_ONCE and not (body.isascii() and b"\\u" not in body)):
        return True
    return has_more_values(body, FEW) or has_more_exponents(body, FEW_EXPONENTS)


class Reader:
    """Reads bodies."""

    def __init__(self) -> None:
        # One at a time, so that the memory of what is read stays bounded. The thread only waits for the process.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="body")
        self._process = BodyProcess()
        self._idle: asyncio.TimerHandle | None = None
        self._waiting = 0
        text_bound.prepare()

    async def read(self, body: bytes) -> ChatCall:
        """The call in a body. Raises InvalidRequest; Overloaded where it cannot be read now."""
        if not is_costly(body):
            return read_chat(strict_json.read(body))
        loop = asyncio.get_running_loop()
        if self._idle is not None:
            self._idle.cancel()
        self._waiting += 1
        try:
            return await loop.run_in_executor(self._thread, self._process.read, body)
        except Internal as error:
            _log.error("body_reading_failed", error=error.message, bytes=len(body))
            raise
        except ProcessEnded as error:
            _log.error("body_reading_failed", error=str(error), bytes=len(body))
            raise Overloaded("The body could not be read now. Try again in a moment.", retry_after=1.0) from None
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._idle = loop.call_later(IDLE, self._rest)

    def _rest(self) -> None:
        if not self._waiting:
            self._thread.submit(self._process.stop)

    async def close(self) -> None:
        """Ends the process; what is being read there is not read."""
        if self._idle is not None:
            self._idle.cancel()
        self._process.kill()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._process.stop)
        self._thread.shutdown(wait=False)
