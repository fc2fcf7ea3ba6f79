"""Ids: UUIDs in canonical lower-case text."""

from __future__ import annotations

import os
import re
import time

_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def uuid7(now_ms: int | None = None) -> str:
    """A new UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then 74 random bits, so that ids sort by time.

    now_ms: the time to put in; None: the wall clock.
    """
    milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_canonical_uuid(text: str) -> bool:
    """Whether this is a UUID as the ledger spells it: lower case, with hyphens."""
    return _CANONICAL.fullmatch(text) is not None


def uuid7_milliseconds(text: str) -> int | None:
    """The Unix milliseconds in a canonical UUIDv7; None for a UUID of another version."""
    return int(text[:8] + text[9:13], 16) if text[14] == "7" else None
