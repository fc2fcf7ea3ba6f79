"""Pages of lists."""

from __future__ import annotations

import base64
import json

import pytest

from gateway.errors import InvalidArgument
from gateway.pages import decode_page_token, encode_page_token, page_limit


@pytest.mark.parametrize(("asked", "given"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000), (10**9, 1000)])
def test_a_page_holds_what_is_asked_for_up_to_a_thousand(asked, given):
    assert page_limit(asked) == given


def test_a_negative_page_size_is_refused():
    with pytest.raises(InvalidArgument):
        page_limit(-1)


def test_a_page_token_gives_its_position_back():
    assert decode_page_token("tokens", encode_page_token("tokens", 7), int) == (7,)
    assert decode_page_token("tokens", "", int) is None


def token_of(value) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "token",
    [
        "garbage", "%", "é", "A" * 600, "====", token_of(7), token_of(["audit", 7]), token_of(["tokens"]),
        token_of(["tokens", "7"]),
        token_of(["tokens", -1]), token_of(["tokens", 2**63]), token_of(["tokens", True]), token_of(["tokens", 7, 7]),
        token_of([[]] * 50),
    ],
)  # fmt: skip
def test_what_is_no_page_token_of_this_list_is_refused(token):
    with pytest.raises(InvalidArgument):
        decode_page_token("tokens", token, int)
