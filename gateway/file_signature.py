"""Whether files have changed since somebody looked at them."""

from __future__ import annotations

import os
from pathlib import Path

Signature = tuple[tuple[int, int, int, int], ...]
"""What tells one state of some files from another."""


def signature(*paths: Path) -> Signature:
    """The state of files, seen through links: device, inode, time of the last change in ns, size. One is missing: empty."""
    try:
        found = [os.stat(path) for path in paths]
    except OSError:
        return ()
    return tuple((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size) for status in found)
