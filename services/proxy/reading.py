"""Reading bodies as calls without holding up everybody else: what takes long is done in a thread, one body at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from services.proxy import strict_json
from services.proxy.json_cost import separators
from services.proxy.strict_json import Document

AT_ONCE: Final = 64 * 1024
"""Bytes of a body that is read on the spot, whatever it holds."""
AT_ONCE_IF_PLAIN: Final = 1024 * 1024
"""The same for a body of few values: long texts are read quickly."""
FEW: Final = 5_000
"""Values at the most in such a body."""

_Call = TypeVar("_Call")


class Reader:
    """Reads bodies."""

    def __init__(self) -> None:
        # One thread: Python runs one at a time anyway, and the memory of what was read stays bounded.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="body")

    async def read(self, body: bytes, judge: Callable[[Document], _Call]) -> _Call:
        """What `judge` makes of the object in a body. Raises InvalidRequest, and what `judge` raises."""
        size = len(body)
        if size <= AT_ONCE or (size <= AT_ONCE_IF_PLAIN and separators(body) <= FEW):
            return judge(strict_json.read(body))
        return await asyncio.get_running_loop().run_in_executor(self._thread, _read, body, judge)


def _read(body: bytes, judge: Callable[[Document], _Call]) -> _Call:
    return judge(strict_json.read(body))
