"""The most tokens that a text can be: never below its NFKC form, and cheap whatever the text is."""

from __future__ import annotations

import random
import time
import unicodedata

import pytest

from gateway import text_bound
from gateway.client import text_ceiling
from gateway.text_bound import text_bytes

MARKS = [chr(code) for code in range(0x20000) if unicodedata.combining(chr(code))]


def size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def seconds(text: str) -> float:
    started = time.thread_time()
    text_bytes(text)
    return time.thread_time() - started


def test_the_bound_covers_the_text_and_its_normal_form_wherever_it_is_cut(monkeypatch):
    chance = random.Random(7)
    everything = [chr(code) for code in range(0x80, 0x30000) if not 0xD800 <= code < 0xE000]
    composed = [char for char in everything if unicodedata.decomposition(char)]
    jamo = [chr(code) for code in (0x1100, 0x1161, 0x11A8, 0xAC00, 0x09C7, 0x09BE, 0x0DD9, 0x0DCF)]
    for piece in (1, 2, 3, 5):
        monkeypatch.setattr(text_bound, "PIECE", piece)
        for _ in range(10_000):
            text = "".join(
                chance.choice(chance.choice((composed, MARKS, everything, jamo))) for _ in range(chance.randint(1, 8))
            )
            assert text_bytes(text) >= max(size(text), size(unicodedata.normalize("NFKC", text))), (piece, ascii(text))


def test_no_character_beyond_the_table_grows_or_combines():
    growing = text_bound._growing()
    overlooked = [
        code
        for code in range(0x20000, 0x110000)
        if unicodedata.combining(chr(code)) or size(unicodedata.normalize("NFKC", chr(code))) > size(chr(code))
    ]
    assert not overlooked
    assert growing["\ufdfa"] == 30


@pytest.mark.parametrize("text", ["Größe ", "नमस्ते दुनिया ", "한국어 ", "สวัสดี ", "漢字 ", "emoji 😀 ", "e\u0301"])
def test_text_as_people_write_it_counts_as_its_bytes(text):
    normal = unicodedata.normalize("NFKC", text)
    for _ in range(3):
        normal += normal
    assert text_bytes(normal) == size(normal)


@pytest.mark.parametrize(
    "kind",
    [
        lambda count: "\u0301\u0327" * (count // 2),
        lambda count: "".join(random.Random(1).choices(MARKS, k=count)),
        lambda count: "".join(chr(0x20000 + number % 0xF0000) for number in range(count)),
        lambda count: "".join(chr(0x10000 + number % 0x10000) for number in range(count)),
        lambda count: "\ufdfa" * count,
        lambda count: "a" + "\u0345" * (count - 1),
    ],
    ids=["two marks", "all marks", "astral", "one plane", "ligatures", "one mark"],
)
def test_a_text_ten_times_as_long_takes_about_ten_times_as_long(kind):
    text_bound.prepare()
    short, long = kind(20_000), kind(200_000)
    assert min(seconds(long) for _ in range(3)) < 40 * max(0.000_5, min(seconds(short) for _ in range(3)))


def test_an_internal_service_bounds_marks_in_time_too():
    started = time.thread_time()
    text_ceiling("\u0301\u0327" * 32_000)  # the normal form of this text takes a second
    assert time.thread_time() - started < 0.5
