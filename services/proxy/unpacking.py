"""Compressed answers, from providers that compress although they were asked not to: unpacked a small piece at a time."""

from __future__ import annotations

import zlib

PIECE = 64 * 1024
"""Bytes that are unpacked at once, however much they were packed."""


class UnpackError(Exception):
    """The packed bytes cannot be read."""


class Unpacker:
    """Unpacks gzip and deflate.

    encoding: as `Content-Encoding` names it; another one, or several over each other, is an error once there are bytes.
    """

    def __init__(self, encoding: str) -> None:
        name = encoding.strip().lower()
        self._known = name in {"gzip", "x-gzip", "deflate"}
        self._plain = name in {"", "identity"}
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._packed = b""

    def feed(self, data: bytes) -> None:
        """Adds packed bytes; to be called when `take` gave nothing."""
        self._packed += data

    def take(self) -> bytes:
        """The next piece; empty: more packed bytes are needed. Raises UnpackError."""
        if self._plain:
            piece, self._packed = self._packed, b""
            return piece
        while self._packed:
            if not self._known:
                raise UnpackError("the answer is compressed in a way that the gateway does not read")
            if self._inflate.eof:  # another member follows
                self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
            try:
                piece = self._inflate.decompress(self._packed, PIECE)
            except zlib.error as error:
                raise UnpackError("the answer's compression cannot be read") from error
            self._packed = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if piece:
                return piece
        return b""

    def end(self) -> None:
        """Takes the end of the packed bytes. Raises UnpackError when something is missing."""
        if self._known and not self._inflate.eof:
            raise UnpackError("the answer's compression ends too early")
