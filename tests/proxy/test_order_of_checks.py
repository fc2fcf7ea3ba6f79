"""The token comes before the body: who sends an unknown one never learns whether the body was valid."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from gateway.errors import RateLimited
from services.proxy import reading
from services.proxy.credentials import Strangers
from tests.proxy.edge_harness import TOKEN, Edge, body_of, chat, head, running_edge, status_of

DENSE = json.dumps(chat(x=[1] * 10_000)).encode()
CASES = {
    "no messages": (b'{"model":"gpt-4","messages":[]}', (), 400),
    "no JSON": (b"{", (), 400),
    "half of a surrogate pair": (b'{"model":"mock","messages":[{"role":"user","content":"\\ud83d"}]}', (), 400),
    "a key in another case": (b'{"model":"mock","Model":"gpt-x","messages":[{}]}', (), 400),
    "too many values": (b'{"x":[' + b"1," * 200_000 + b"1]}", (), 400),
    "compressed": (b"{}", ("Content-Encoding: gzip",), 415),
    "too large": (b"", ("Content-Length: 99999999999",), 413),
    "nobody serves the model": (json.dumps(chat("nobody")).encode(), (), 404),
}


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running_edge() as running:
        yield running


async def send(edge: Edge, raw: bytes, *headers: str, token: str = TOKEN) -> bytes:
    lines = headers if any(line.startswith("Content-Length") for line in headers) else (*headers, f"Content-Length: {len(raw)}")
    request = head("POST", "/v1/chat/completions", "Connection: close", *lines).replace(TOKEN.encode(), token.encode())
    return await edge.raw(request + raw)


@pytest.mark.parametrize("name", CASES)
async def test_an_unknown_token_is_refused_as_such_whatever_is_wrong_with_the_body(edge: Edge, name: str) -> None:
    raw, headers, status = CASES[name]
    asked = edge.auth.asked
    answer = await send(edge, raw, *headers, token="sk-nobody-knows-this-one")
    assert (status_of(answer), body_of(answer)["error"]["code"]) == (401, "invalid_api_key")
    assert edge.auth.asked == asked + 1
    answer = await send(edge, raw, *headers)
    assert status_of(answer) == status
    names = status == 404  # and once more, for the names that this token may use
    assert edge.auth.asked == asked + 2 + names


async def test_a_faulty_body_while_auth_is_away_is_told_that_auth_is_away(edge: Edge) -> None:
    edge.auth.away = True
    assert status_of(await send(edge, b"{")) == 503


async def test_a_good_plain_body_costs_one_question_and_a_costly_one_two(edge: Edge) -> None:
    for raw, questions in ((json.dumps(chat()).encode(), 1), (DENSE, 2)):
        asked = edge.auth.asked
        assert status_of(await send(edge, raw)) == 200
        assert edge.auth.asked == asked + questions


async def test_a_costly_body_of_an_unknown_sender_is_not_read(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    async def note(self: reading.Reader, body: bytes) -> None:
        read.append(body)

    monkeypatch.setattr(reading.Reader, "read", note)
    assert reading.is_costly(DENSE)
    assert status_of(await send(edge, DENSE, token="sk-nobody-knows-this-one")) == 401
    assert not read


# -- addresses that guess -----------------------------------------------------------------------------------------------------


async def test_an_address_above_the_limit_is_refused_without_a_question_and_its_good_tokens_pass(edge: Edge) -> None:
    async with edge.get("/v1/models") as response:
        assert response.status == 200
    for number in range(60):
        async with edge.session.get(edge.url + "/v1/models", headers={"x-api-key": f"guess-{number}"}) as response:
            assert response.status == (401 if number < 30 else 429)
    asked = edge.auth.asked
    assert asked <= 1 + 30 + 4 + 5  # the good token, the limit, what is spared for unseen tokens, and one more each second
    for raw in (b"{", json.dumps(chat()).encode()):
        assert status_of(await send(edge, raw, token="guess-7")) == 429
    assert edge.auth.asked == asked
    assert status_of(await send(edge, json.dumps(chat()).encode())) == 200


def test_unseen_tokens_of_such_an_address_are_asked_about_once_a_second() -> None:
    strangers, now = Strangers(limit=3, spare=2), 600.0
    for number in range(3):
        strangers.check("a", b"%d" % number, now)
        strangers.note("a", b"%d" % number, now)
    let_through = 0
    for step in range(100):
        try:
            strangers.check("a", b"unseen%d" % step, now + step / 10)
        except RateLimited:
            continue
        let_through += 1
    assert 2 + 9 <= let_through <= 2 + 10
    strangers.check("another", b"0", now + 10)
    strangers.check("a", b"0", now + 60)


def test_a_token_that_was_recognized_is_always_asked_about_until_it_is_unknown() -> None:
    strangers = Strangers(limit=1, spare=0)
    strangers.recognize(b"good")
    strangers.note("a", b"bad", 600.0)
    for _ in range(100):
        strangers.check("a", b"good", 601.0)
    with pytest.raises(RateLimited):
        strangers.note("a", b"good", 601.0)
    with pytest.raises(RateLimited):
        strangers.check("a", b"good", 601.0)


def test_what_is_remembered_is_bounded() -> None:
    strangers = Strangers(limit=1, remembered=10)
    for number in range(1000):
        strangers.recognize(b"%d" % number)
        strangers.note(f"address{number}", b"bad%d" % number, 600.0)
    assert len(strangers._recognized) == len(strangers._tries) == len(strangers._above) == len(strangers._unknown) == 10
