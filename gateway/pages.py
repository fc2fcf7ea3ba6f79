"""Lists in pages: how many things a page holds, and the opaque tokens that say where the next one begins."""

from __future__ import annotations

import base64
import binascii
import json

from gateway.errors import InvalidArgument

DEFAULT_SIZE = 100
MAX_SIZE = 1_000
_LONGEST_TOKEN = 512


def page_limit(page_size: int) -> int:
    """How many things a page holds at most: what is asked for, 100 for 0, never above 1,000. Below 0: InvalidArgument."""
    if page_size < 0:
        raise InvalidArgument("page_size is 1 to 1000, or 0 for 100", metadata={"param": "page_size"})
    return min(page_size, MAX_SIZE) or DEFAULT_SIZE


def encode_page_token(kind: str, *position: str | int) -> str:
    """The token of the page that follows this position in a list of this kind."""
    raw = json.dumps([kind, *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_page_token(kind: str, token: str, *shape: type[str] | type[int]) -> tuple[str | int, ...] | None:
    """The position in a token of this kind; None for an empty token, which is the first page.

    shape: the types of the position's parts. Raises InvalidArgument for what is no token of this kind of list.
    """
    if not token:
        return None
    if len(token) > _LONGEST_TOKEN:
        raise _wrong()
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        value = json.loads(raw)
    except (ValueError, binascii.Error, RecursionError):
        raise _wrong() from None
    if not isinstance(value, list) or len(value) != len(shape) + 1 or value[0] != kind:
        raise _wrong()
    position = tuple(value[1:])
    for part, expected in zip(position, shape, strict=True):
        if type(part) is not expected or (isinstance(part, int) and not 0 <= part < 1 << 63):
            raise _wrong()
    return position


def _wrong() -> InvalidArgument:
    return InvalidArgument(
        "page_token is not one of this list's: take next_page_token from the answer before, or leave it out",
        metadata={"param": "page_token"},
    )
