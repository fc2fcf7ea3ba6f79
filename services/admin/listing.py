"""Pages of lists, as every List RPC answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from gateway.errors import InvalidArgument
from gateway.pages import encode_page_token

MAX_BYTES = 3 << 20
"""A page ends early here: a message is at most 4 MiB, and a token with a thousand models takes a quarter of one."""
_LONGEST = 256

Row = TypeVar("Row")
Item = TypeVar("Item", bound=Message)


def fill_page(
    kind: str,
    found: Sequence[Row],
    *,
    limit: int,
    to_message: Callable[[Row], Item],
    position: Callable[[Row], tuple[str | int, ...]],
) -> tuple[list[Item], str]:
    """The messages of one page and the token of the next one, empty where there is none.

    found: one row more than the limit where there are more. position: what a row's place in the list is known by.
    """
    messages: list[Item] = []
    size = 0
    for row in found[:limit]:
        message = to_message(row)
        size += message.ByteSize() + 8
        if messages and size > MAX_BYTES:
            break
        messages.append(message)
    if len(messages) == len(found):
        return messages, ""
    return messages, encode_page_token(kind, *position(found[len(messages) - 1]))


def filter_text(field: str, text: str) -> str:
    """The text of a filter, as it is. Raises InvalidArgument for one that is longer than anything it could match."""
    if len(text) > _LONGEST:
        raise InvalidArgument(f"{field} has at most {_LONGEST} characters", metadata={"param": field})
    return text
