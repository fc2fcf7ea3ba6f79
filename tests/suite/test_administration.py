"""Administration over HTTP, as people type it with `curl -d`, and the walls between its sessions and client tokens."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any

import pytest

from tests.suite.audit import open_holds
from tests.suite.conftest import ADMIN_PASSWORD, Installation
from tests.suite.stack import wait_for

FORM = "application/x-www-form-urlencoded"  # what `curl -d` sends by itself
CHAT = {"model": "gpt-test", "messages": [{"role": "user", "content": "Hello"}]}


def http_call(suite: Installation, method: str, path: str, bearer: str = "", body: Any = None) -> tuple[int, Any]:
    """Status and body; JSON is read, other text is given as it is."""
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    if body is not None:
        headers["Content-Type"] = FORM
    connection = http.client.HTTPConnection("127.0.0.1", suite.stack.http_port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        text = response.read().decode()
    with contextlib.suppress(ValueError):
        return response.status, json.loads(text)
    return response.status, text


@pytest.fixture(scope="session")
def session(suite: Installation) -> str:
    status, answer = http_call(suite, "POST", "/auth/login", body={"username": "admin", "password": ADMIN_PASSWORD})
    assert status == 200, answer
    return answer["session_token"]


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"max_amount": 50}, {"max_amount": 50.0}),
        ({"token": "new-token-of-the-test"}, {"token": "new-token-of-the-test"}),
        ({"expires_at": "2099-01-31"}, {}),
        ({"max_amount": 100.0, "allowed_models": ["gpt-4", "claude-3"]}, {"allowed_models": ["gpt-4", "claude-3"]}),
    ],
)
def test_tokens_are_made_by_what_people_type(suite, session, asked, shown):
    status, made = http_call(suite, "POST", "/admin/tokens", session, asked)
    assert status in {200, 201}, made
    assert made["token"] and made["id"]
    assert {key: made[key] for key in shown} == shown


def test_a_token_is_switched_off_and_on_and_deleted_from_its_next_call_on(suite, session):
    _, made = http_call(suite, "POST", "/admin/tokens", session, {"max_amount": 5, "name": "switched"})
    token, path = made["token"], f"/admin/tokens/{made['id']}"
    assert http_call(suite, "POST", "/v1/chat/completions", token, CHAT)[0] == 200
    assert http_call(suite, "POST", f"{path}/toggle", session)[0] == 200
    status, refused = http_call(suite, "POST", "/v1/chat/completions", token, CHAT)
    assert (status, refused["error"]["code"]) == (401, "token_disabled")
    assert http_call(suite, "POST", f"{path}/toggle", session)[0] == 200
    assert http_call(suite, "POST", "/v1/chat/completions", token, CHAT)[0] == 200
    assert http_call(suite, "DELETE", path, session)[0] in {200, 204}
    status, refused = http_call(suite, "POST", "/v1/chat/completions", token, CHAT)
    assert (status, refused["error"]["code"]) == (401, "invalid_api_key")


def test_the_request_log_gives_a_whole_record_a_line(suite, session):
    http_call(suite, "POST", "/admin/tokens", session, {"name": "grep-me", "token": "token-that-is-in-the-log-by-name"})
    assert http_call(suite, "POST", "/v1/chat/completions", "token-that-is-in-the-log-by-name", CHAT)[0] == 200
    wait_for("the call is reported", lambda: open_holds(suite.stack.database) == 0)
    connection = http.client.HTTPConnection("127.0.0.1", suite.stack.http_port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/admin/logs/requests", headers={"Authorization": f"Bearer {session}"})
        text = connection.getresponse().read().decode()
    [line] = [line for line in text.splitlines() if "grep-me" in line]
    record = json.loads(line.strip().removesuffix(","))
    assert (record["token_name"], record["model"], record["status"]) == ("grep-me", "gpt-test", 200)
    assert json.loads(text)


def test_a_client_token_opens_nothing_of_admin_and_a_session_nothing_of_v1(suite, session):
    token = suite.token()
    for path in ("/admin/tokens", "/admin/logs/requests"):
        status, answer = http_call(suite, "GET", path, token)
        assert status == 401 and answer["error"]["code"]
    status, answer = http_call(suite, "POST", "/v1/chat/completions", session, CHAT)
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
