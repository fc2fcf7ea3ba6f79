"""Bodies that are cheap to send and were dear to judge: the work grows with the body, not with its square."""

from __future__ import annotations

import random
import time
import unicodedata

import pytest

from gateway.errors import InvalidRequest
from gateway.text_bound import text_bytes as text_ceiling
from services.proxy import strict_json


def seconds(work):
    started = time.process_time()
    work()
    return time.process_time() - started


def test_runs_of_digits_just_below_the_limit_are_read_in_time():
    body = b'{"x":[' + (b"1" * 999 + b",") * 1000 + b"1]}"
    assert seconds(lambda: strict_json.read(body)) < 0.5


@pytest.mark.parametrize("before", [b"", b"1,", b'".5",'])
def test_a_number_of_too_many_digits_is_still_found(before):
    with pytest.raises(InvalidRequest, match="digits"):
        strict_json.read(b'{"x":[' + before + b"9" * 1001 + b"]}")


@pytest.mark.parametrize("text", ["\u0301\u0327" * 16_000, "\ufdfa" * 21_000], ids=["marks", "ligatures"])
def test_text_that_is_slow_to_normalize_is_counted_in_time(text):
    assert seconds(lambda: text_ceiling(text)) < 0.2


def test_the_ceiling_covers_the_text_and_its_normal_form():
    chance = random.Random(7)
    everything = [chr(code) for code in range(0x80, 0x30000) if not 0xD800 <= code < 0xE000]
    composed = [char for char in everything if unicodedata.decomposition(char)]
    marks = [char for char in everything if unicodedata.combining(char)]
    for _ in range(20_000):
        text = "".join(chance.choice(chance.choice((composed, marks, everything))) for _ in range(chance.randint(1, 6)))
        forms = (text, unicodedata.normalize("NFKC", text))
        assert text_ceiling(text) >= max(len(form.encode()) for form in forms), ascii(text)
