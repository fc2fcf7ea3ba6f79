"""Memory that a process has used and does not need any more goes back to the system at once."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_TRIM_THRESHOLD: Final = -1  # the numbers of <malloc.h>
_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 1 << 20
_KEPT: Final = 8 << 20


def give_back_large_blocks() -> None:
    """Has glibc return blocks of a megabyte and more when they are freed. Nothing where there is no glibc.

    By itself glibc raises its bounds up to 32 and 64 MiB with the first large block that is freed, and keeps as much for each
    thread: after bodies of 30 MB and after passwords (argon2 takes 19 MiB for each) hundreds of megabytes stayed.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl, which has no such bounds
        return
    mallopt(_MMAP_THRESHOLD, _LARGE)
    mallopt(_TRIM_THRESHOLD, _KEPT)
