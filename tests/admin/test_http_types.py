"""Every field of every route of administration with every JSON type: never a 5xx, and lists can still be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.admin.conftest import PASSWORD
from tests.support.json_types import VALUES

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

TOKEN = {
    "name": "n",
    "allowed_models": ["m"],
    "allowed_ips": ["10.0.0.0/8"],
    "enabled": True,
    "expires_at": "2030-01-31",
    "customer": "c",
    "remark": "r",
    "max_amount": 5,
    "budget_mode": "strict",
    "budget_period": "total",
    "requests_per_minute": 1,
    "tokens_per_minute": 1,
    "max_parallel_requests": 1,
}
UUID = "01890a5d-ac96-774b-bcce-b302099a8057"
BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/auth/login", {"username": "admin", "password": "no", "kind": "terminal"}),
    ("POST", "/auth/password", {"old_password": "no", "new_password": "a-new-phrase-of-theirs"}),
    ("POST", "/admin/tokens", {**TOKEN, "token": "my-own-secret", "request_id": UUID}),
    ("PATCH", "/admin/tokens/1", {**TOKEN, "version": 1}),
    ("POST", "/admin/tokens/1/toggle", {"enabled": True}),
    ("POST", "/admin/tokens/1/rotate", {"grace_seconds": 1, "request_id": UUID}),
    ("POST", "/admin/tokens/1/topup", {"amount": 1, "request_id": UUID}),
    ("POST", "/admin/tokens/1/adjustments", {"amount": -1, "reason": "r", "request_id": UUID}),
    (
        "POST",
        "/admin/prices",
        {
            "model": "m",
            "provider": "p",
            "rates": {"input": "1", "output": ["1", [1000, "2"]]},
            "context_window": 1,
            "max_output_tokens": 1,
            "valid_from": "2030-01-31",
            "request_id": UUID,
        },
    ),
]
LISTS = (
    *("/admin/tokens", "/admin/tokens/1/adjustments", "/admin/prices", "/admin/logs/requests", "/admin/usage/customers"),
    *("/admin/audit", "/admin/sessions"),
)
PARAMETERS = (
    *("name", "customer", "page_size", "page_token", "cursor", "provider", "model", "source", "retired", "token", "token_id"),
    *("state", "from", "until", "action", "subject"),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


def changed(body: dict[str, Any], path: tuple[Any, ...], raw: str) -> bytes:
    """The body with the value at this path written in this way."""
    if not path:
        return raw.encode()
    copied = json.loads(json.dumps(body))
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "\x00here\x00"
    return json.dumps(copied).replace('"\\u0000here\\u0000"', raw).encode()


@pytest.mark.parametrize(("method", "path", "body"), BODIES, ids=[path for _, path, _ in BODIES])
async def test_no_json_type_in_any_field_is_more_than_a_wrong_request(door, method, path, body, capfd, caplog):
    made = await door.send("POST", "/admin/tokens", {"name": "first", "max_amount": 5})
    assert made.json["id"] == 1
    statuses = set()
    for place in places(body):
        for raw in VALUES:
            answer = await door.send(method, path, changed(body, place, raw))
            assert answer.status < 500, (place, raw, answer.text)
            statuses.add(answer.status)
    assert 400 in statuses
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    assert (await door.send("GET", "/admin/tokens")).status == 200
    assert (await door.send("GET", "/admin/prices")).status == 200


async def test_no_parameter_of_a_list_is_more_than_a_wrong_request(door, capfd, caplog):
    for path in LISTS:
        for name in PARAMETERS:
            for raw in VALUES:
                answer = await door.send("GET", f"{path}?{name}={quote(raw[:1000])}")
                assert answer.status < 500, (path, name, raw, answer.text)
    assert "Traceback" not in capfd.readouterr().err + caplog.text


async def test_types_are_refused_without_a_session_too(door):
    for body in (b'{"kind":[]}', b'{"username":{},"password":[],"kind":{}}', b'{"kind":false}'):
        assert (await door.send("POST", "/auth/login", body, bearer="")).status == 400
    for body in (b'{"name":[]}', b"[", b'{"x":' + b"[" * 5000):
        answer = await door.send("POST", "/admin/tokens", body, bearer="gzs_" + "A" * 43)
        assert (answer.status, answer.code) == (401, "unauthenticated")


SIZES = [
    ("/auth/login", 16 << 10, {"username": "admin", "password": PASSWORD}),
    ("/admin/tokens", 64 << 10, {}),
    ("/admin/tokens/1/topup", 16 << 10, {"amount": 1}),
]


@pytest.mark.parametrize(("path", "limit", "members"), SIZES, ids=[path for path, *_ in SIZES])
async def test_a_body_is_no_larger_than_its_route_needs(door, path, limit, members):
    made = await door.send("POST", "/admin/tokens", {"name": "first", "max_amount": 5})
    assert made.json["id"] == 1
    body = json.dumps(members).ljust(limit)
    assert (await door.send("POST", path, body)).status in {200, 201}
    assert (await door.send("POST", path, body + " ")).status == 413


async def test_a_session_comes_before_the_size_and_the_packing_of_a_body(door):
    made_up = "gzs_" + "A" * 43
    for headers, body in (({}, b" " * (1 << 20)), ({"Content-Encoding": "gzip"}, b"{}")):
        answer = await door.send("POST", "/admin/tokens", body, headers=headers, bearer=made_up)
        assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_a_body_of_very_many_values_is_refused_by_their_number(door):
    answer = await door.send("POST", "/admin/tokens", b'{"allowed_models":[' + b"1e308," * 10_000 + b"1]}")
    assert answer.status == 400
    assert "JSON values" in answer.text
