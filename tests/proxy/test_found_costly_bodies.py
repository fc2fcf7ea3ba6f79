"""Bodies that are cheap to send and were dear to judge: the work grows with the body, not with its square."""

from __future__ import annotations

import contextlib
import random
import time
import unicodedata

import pytest

from benchmarks.bodies import kinds
from gateway import text_bound
from gateway.errors import InvalidRequest
from gateway.text_bound import text_bytes as text_ceiling
from services.proxy import strict_json
from services.proxy.dialects.openai import read_chat
from services.proxy.reading import is_costly


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


KINDS = list(kinds(60_000))


@pytest.mark.parametrize(("kind", "body"), KINDS, ids=[kind for kind, _ in KINDS])
def test_what_a_caller_without_a_token_may_send_costs_little(kind, body):
    """The dearest kind took 117 ms, now 3; what is costly is told so in less and is not read before the token is known."""

    def work():
        if not is_costly(body):
            with contextlib.suppress(InvalidRequest):
                read_chat(strict_json.read(body))

    text_bound.prepare()
    assert min(seconds(work) for _ in range(3)) < 0.03, kind


def test_a_number_costs_about_the_same_whatever_it_is():
    def of(number):
        body = b'{"x":[' + b",".join([number] * 2_000) + b"]}"
        return min(seconds(lambda: strict_json.read(body)) for _ in range(5))

    assert of(b"1e308") < 20 * of(b"1.25")  # with msgspec's own way 300 times
