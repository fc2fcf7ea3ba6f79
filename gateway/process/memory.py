"""Memory that a process has used and does not need any more goes back to the system at once."""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Final

from gateway.process.tasks import keep_looking

_TRIM_THRESHOLD: Final = -1  # the numbers of <malloc.h>
_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 1 << 20
_KEPT: Final = 8 << 20
_LOOK_EVERY: Final = 5.0


def give_memory_back() -> None:
    """Has glibc return blocks of a megabyte and more when they are freed, and what lies free between others every few seconds.

    By itself glibc raises its bounds up to 32 and 64 MiB with the first large block that is freed, and keeps as much for each
    thread: after bodies of 30 MB and after passwords (argon2 takes 19 MiB for each) hundreds of megabytes stayed. It gives back
    small blocks at the end of its memory alone, so a single one that lives keeps what hundreds of connections have left behind.
    Nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    try:
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except AttributeError:  # another C library, such as musl, which has no such bounds
        return
    mallopt(_MMAP_THRESHOLD, _LARGE)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    # 1 ms where there is much to give back, and 0.05 ms where there is nothing.
    looking = {"every": _LOOK_EVERY, "stop": threading.Event()}
    threading.Thread(target=keep_looking, args=(lambda: malloc_trim(0),), kwargs=looking, name="memory", daemon=True).start()
