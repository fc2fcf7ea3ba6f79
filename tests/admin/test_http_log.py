"""The request log through the HTTP door: JSON for grep, NDJSON and CSV for programs and people."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta

import pytest

from gateway.ids import uuid7
from gateway.storage import refusals
from gateway.storage.refusals import KeptRefusal
from tests.admin.test_requests import START, add


@pytest.fixture
async def calls(door, db):
    """Three calls, the newest first, of two tokens."""
    ids = []
    for number, name in enumerate(("app", "app", "other")):
        made = await door.send("POST", "/admin/tokens", {"name": name})
        ids.append(
            add(
                db,
                made.json["id"],
                at=START + timedelta(hours=number),
                request_model=f"gpt-{number}",
                endpoint="/v1/chat/completions",
                cost_nanos=1_500_000_000,
                held_nanos=2_000_000_000,
                input_tokens=11,
                output_tokens=5,
                usage_source="provider",
                status=200,
                user_agent="=HYPERLINK(x)" if number == 0 else 'quoted "agent", and more',
                client_ip="203.0.113.9",
                provider="openai",
                response_model="gpt",
            )
        )
    return ids[::-1]


async def test_grep_for_a_name_gives_whole_records(door, calls):
    answer = await door.send("GET", "/admin/logs/requests")
    found = [line.rstrip(",") for line in answer.text.splitlines() if "app" in line]
    assert [json.loads(line)["request_id"] for line in found] == calls[1:]
    assert [record["request_id"] for record in answer.json["requests"]] == calls
    assert answer.json["next_page_token"] is None


async def test_a_record_tells_the_call_in_currency_units(door, calls):
    answer = await door.send("GET", f"/admin/logs/requests/{calls[0]}")
    record = answer.json
    assert record["at"] == "2026-11-20T02:00:00Z"
    assert (record["token_name"], record["model"]) == ("other", "gpt-2")
    assert (record["response_model"], record["provider"]) == ("gpt", "openai")
    assert (record["state"], record["status"], record["error_code"], record["source"]) == ("settled", 200, None, "provider")
    assert (record["input_tokens"], record["output_tokens"], record["total_tokens"]) == (11, 5, 16)
    assert (record["amount"], record["held"]) == (1.5, 2.0)
    listed = (await door.send("GET", "/admin/logs/requests?page_size=1")).json["requests"]
    assert listed == [record]


async def test_filters_and_cursors_pass_what_they_name(door, calls):
    async def found(query):
        answer = await door.send("GET", f"/admin/logs/requests?{query}")
        assert answer.status == 200, answer.text
        return [calls.index(record["request_id"]) for record in answer.json["requests"]]

    assert await found("token=app") == [1, 2]
    assert await found("token_id=3") == [0]
    assert await found("model=gpt-1") == [1]
    assert await found("state=settled&page_size=2") == [0, 1]
    assert await found("state=released") == []
    assert await found("from=2026-11-20T01:00:00Z") == [0, 1]
    assert await found("from=2026-11-20T02:00:00+01:00") == [0, 1]
    assert await found("until=2026-11-20T01:00:00Z") == [2]
    assert await found("from=2026-11-20&until=2026-11-20") == [0, 1, 2]
    assert await found("until=2026-11-19") == []
    first = (await door.send("GET", "/admin/logs/requests?page_size=2")).json
    assert await found(f"page_size=2&cursor={first['next_page_token']}") == [2]
    assert await found(f"page_size=2&page_token={first['next_page_token']}") == [2]


async def test_what_a_query_does_not_take_is_refused(door, calls):
    for query in (
        "tokne=app", "state=open", "from=yesterday", "until=5", "cursor=garbage", "cursor=a&page_token=a", "token_id=app",
        "page_size=-1",
        "model=a&model=b", "from=0001-01-01T00:00:00%2B12:00", "until=9999-12-31",
    ):  # fmt: skip
        answer = await door.send("GET", f"/admin/logs/requests?{query}")
        assert (answer.status, answer.code) == (400, "invalid_request"), query


async def test_an_unknown_call_is_not_found(door):
    for request_id in ("0190b0a4-5b7c-7e3a-9d55-0f6c1a2b3c4d", "x", "1"):
        assert (await door.send("GET", f"/admin/logs/requests/{request_id}")).status == 404


async def test_programs_get_one_record_a_line(door, calls):
    answer = await door.send("GET", "/admin/logs/requests?page_size=2", headers={"Accept": "application/x-ndjson"})
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line)["request_id"] for line in answer.text.splitlines()] == calls[:2]
    token = answer.headers["x-next-page-token"]
    last = await door.send("GET", f"/admin/logs/requests?cursor={token}", headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line)["request_id"] for line in last.text.splitlines()] == calls[2:]
    assert "x-next-page-token" not in last.headers


async def test_a_spreadsheet_gets_a_table_that_runs_no_formula(door, calls):
    answer = await door.send("GET", "/admin/logs/requests", headers={"Accept": "text/csv, */*;q=0.1"})
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["request_id"] for row in rows] == calls
    assert [row["user_agent"] for row in rows] == ['quoted "agent", and more'] * 2 + ["'=HYPERLINK(x)"]
    assert rows[0]["amount"] == "1.5"
    assert rows[0]["error_code"] == ""


async def test_hostile_text_in_a_record_stays_on_its_line(door, db, calls):
    made = await door.send("POST", "/admin/tokens", {"name": "third"})
    add(db, made.json["id"], at=START + timedelta(days=1), request_model='m\n"},\r\u2028\x1b[31m{"request_id": "forged"')
    for accept in ("application/json", "application/x-ndjson"):
        answer = await door.send("GET", "/admin/logs/requests", headers={"Accept": accept})
        assert len([line for line in answer.text.splitlines() if line.startswith("{") and "request_id" in line]) == 4
    table = await door.send("GET", "/admin/logs/requests", headers={"Accept": "text/csv"})
    assert len(list(csv.DictReader(io.StringIO(table.text, newline="")))) == 4


async def test_a_refusal_is_told_by_the_id_that_its_caller_was_told(door, db):
    at = "2026-11-23T11:00:00.000000Z"
    refused = KeptRefusal(uuid7(), at, 0, "TOKEN_UNKNOWN", "This token is not known here.", client_ip="192.0.2.7")
    minute = {"limit": "requests_per_minute", "limit_value": "60", "resets_at": "2026-11-23T11:01:00.000000Z"}
    full = KeptRefusal(uuid7(), at, 0, "RATE_LIMITED", "no more", minute, request_model="gpt-4")
    with db.write():
        refusals.add(db, {}, [refused, full])
    told = (await door.send("GET", f"/admin/logs/requests/{refused.request_id}")).json
    assert (told["state"], told["error_code"], told["token_id"], told["token_name"]) == (
        "refused",
        "invalid_api_key",
        None,
        None,
    )
    assert (told["at"], told["message"]) == ("2026-11-23T11:00:00Z", "This token is not known here.")
    told = (await door.send("GET", f"/admin/logs/requests/{full.request_id}")).json
    assert (told["limit"], told["limit_value"], told["resets_at"]) == ("requests_per_minute", 60, "2026-11-23T11:01:00Z")
    assert (told["remaining"], told["model"]) == (None, "gpt-4")
    assert (await door.send("GET", f"/admin/logs/requests/{uuid7()}")).status == 404
