"""One id leads from the answer's header through the logs of all services to the row in the ledger."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from tests.suite.conftest import ADMIN_PASSWORD, Installation, Installer
from tests.suite.stack import wait_for


def ask(suite: Installation, path: str, body: dict[str, Any] | None, secret: str = "") -> tuple[int, str, dict[str, Any]]:
    """Status, request id and JSON of an answer. The id that the caller sends along is not to be believed."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{suite.stack.http_port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {secret}", "x-request-id": "of-the-caller"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["x-request-id"], json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers["x-request-id"], json.load(refused)


def lines(suite: Installation, request_id: str) -> dict[str, list[dict[str, Any]]]:
    """What each service has logged of a request."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in suite.stack.logs.iterdir():
        for line in path.read_text().splitlines():
            if request_id in line:
                event = json.loads(line)
                assert event["request_id"] == request_id
                found.setdefault(event["service"], []).append(event)
    return found


def events(suite: Installation, request_id: str) -> dict[str, list[str]]:
    return {service: [line["event"] for line in told] for service, told in lines(suite, request_id).items()}


CALL = {"model": "gpt-test", "messages": [{"role": "user", "content": "tokens:5"}]}


def test_a_call_is_found_by_its_id_in_the_logs_and_in_the_ledger(fresh: Installer):
    suite = fresh("auth", "proxy", GATEWAY_LOG_LEVEL="debug")
    token = suite.token(max_amount=1)
    status, request_id, _ = ask(suite, "/v1/chat/completions", CALL, token)
    assert status == 200
    wait_for("it is settled in the log of auth", lambda: "settled" in events(suite, request_id).get("auth", []))
    told = lines(suite, request_id)
    assert [line["event"] for line in told["auth"]][:2] == ["admitted", "settled"]
    assert [(line["event"], line["status"]) for line in told["proxy"]] == [("request", 200)]
    [row] = suite.calls(token)
    assert row["request_id"] == request_id
    assert told["auth"][0]["token_id"] == told["proxy"][0]["token_id"] == row["token_id"]


def test_a_refusal_is_found_by_its_id_without_debugging(fresh: Installer):
    suite = fresh("auth", "proxy")
    token = suite.token(max_amount=1, allowed_models="gpt-4")
    status, request_id, _ = ask(suite, "/v1/chat/completions", CALL, token)
    assert status == 403
    wait_for("auth has written it", lambda: "auth" in events(suite, request_id))
    told = lines(suite, request_id)
    assert [(line["event"], line["reason"]) for line in told["auth"]] == [("denied", "MODEL_NOT_ALLOWED")]
    assert [(line["event"], line["reason"]) for line in told["proxy"]] == [("request", "MODEL_NOT_ALLOWED")]
    assert token not in json.dumps(told)


def test_whoever_was_refused_is_found_by_the_id_of_the_answer(fresh: Installer):
    """By the command line and over HTTP, whoever it was: also where the body was too large to be read before the token."""
    suite = fresh("auth", "admin", "proxy")
    token = suite.token(max_amount=0, allowed_models="gpt-*")
    large = CALL | {"messages": [{"role": "user", "content": "x" * 100_000}]}
    refused = {}
    for case, secret, body, status in (
        ("insufficient_quota", token, CALL, 402),
        ("invalid_api_key", "nobody-has-this-token", CALL, 401),
        ("insufficient_quota", token, large, 402),
    ):
        told, request_id, answer = ask(suite, "/v1/chat/completions", body, secret)
        assert (told, answer["error"]["code"]) == (status, case)
        refused[request_id] = answer["error"]
    _, _, session = ask(suite, "/auth/login", {"username": "admin", "password": ADMIN_PASSWORD})
    for request_id, error in refused.items():
        path = f"/admin/logs/requests/{request_id}"
        wait_for("auth has written it", lambda path=path: ask(suite, path, None, session["session_token"])[0] == 200)
        record = ask(suite, path, None, session["session_token"])[2]
        assert (record["state"], record["error_code"]) == ("refused", error["code"])
        assert record["message"] == error["message"] or record["reason"] == "token_unknown"  # callers get one text for all
        by_hand = json.loads(suite.stack.gateway("explain", "--request", request_id, "--json").stdout)
        assert (by_hand["message"], by_hand["reason"]) == (record["message"], record["reason"])


def test_an_administrators_request_is_found_in_the_logs_of_the_proxy_and_of_admin(fresh: Installer):
    suite = fresh("auth", "admin", "proxy", GATEWAY_LOG_LEVEL="debug")
    status, login_id, answer = ask(suite, "/auth/login", {"username": "admin", "password": ADMIN_PASSWORD})
    assert status == 200
    status, request_id, _ = ask(suite, "/admin/tokens", {"name": "made"}, answer["session_token"])
    assert status == 201
    refused, refused_id, _ = ask(suite, "/admin/tokens/999", None, answer["session_token"])
    assert refused == 404
    _, _, page = ask(suite, "/admin/audit?action=token.create", None, answer["session_token"])
    assert page["records"][0]["request_id"] == request_id
    for one, method in ((login_id, "Login"), (request_id, "CreateToken"), (refused_id, "GetToken")):
        wait_for("its line is written", lambda one=one: "proxy" in lines(suite, one) and "admin" in lines(suite, one))
        told = lines(suite, one)
        assert [line["event"] for line in told["proxy"]] == ["request"]
        assert any(line["event"] == "rpc" and line["method"].endswith(method) for line in told["admin"]), told
