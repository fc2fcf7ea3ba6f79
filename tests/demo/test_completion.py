"""What the demo provider answers, as a pure function."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.demo.completion import MAX_CHOICES, BadRequest, answer, parse, tokens_of, usage


def request(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": "Hello, old friend"}]} | fields


@given(st.text())
def test_tokens_put_together_are_the_text_without_the_white_space_at_its_end(text: str) -> None:
    assert "".join(tokens_of(text)) == text.rstrip()
    assert len(tokens_of(text)) == len(text.split())


def test_the_reply_says_what_it_is_and_echoes_the_question() -> None:
    (choice,) = answer(parse(request()))
    assert "demo provider" in choice.text
    assert "Hello, old friend" in choice.text
    assert choice.finish_reason == "stop"


def test_a_limit_cuts_the_reply_and_the_smaller_of_two_limits_counts() -> None:
    (choice,) = answer(parse(request(max_tokens=7, max_completion_tokens=3)))
    assert len(choice.tokens) == 3
    assert choice.finish_reason == "length"


def test_min_tokens_makes_a_reply_as_long_as_wished() -> None:
    (choice,) = answer(parse(request(min_tokens=1000)))
    assert len(choice.tokens) == 1000 == len(tokens_of(choice.text))
    (choice,) = answer(parse(request(min_tokens=1000, max_tokens=500)))
    assert (len(choice.tokens), choice.finish_reason) == (500, "length")


def test_usage_counts_the_words_of_all_messages_and_every_token_of_every_choice() -> None:
    messages = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "What is this"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None},
    ]
    asked = parse(request(messages=messages, n=3, max_tokens=5))
    choices = answer(asked)
    assert [len(choice.tokens) for choice in choices] == [5, 5, 5]
    assert usage(asked, 15) == {"prompt_tokens": 6, "completion_tokens": 15, "total_tokens": 21}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"n": 0}, "n"),
        ({"n": MAX_CHOICES + 1}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, None),
        ({"stream_options": [1]}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "include_usage"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str | None) -> None:
    if param is None:
        parse(request(**fields))
        return
    with pytest.raises(BadRequest) as fault:
        parse(request(**fields))
    assert fault.value.param == param
