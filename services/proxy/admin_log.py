"""The request log as the HTTP door gives it: which calls a query asks for, and the calls as JSON, NDJSON or CSV."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from multidict import MultiMapping

from gateway.errors import InvalidRequest
from gateway.http_errors import TABLE
from gateway.money import to_json_number
from gateway.stubs.admin.v1 import requests_pb2
from services.proxy.admin_json import moment_to_json

JSON = "application/json"
NDJSON = "application/x-ndjson"
CSV = "text/csv"

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_MAX_PAGE = 1_000
# Unicode's further line ends: JSON lets them stand, and many a reader of lines would break a record there.
_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


def parameters(query: MultiMapping[str], known: Collection[str]) -> dict[str, str]:
    """The parameters of a query. Raises InvalidRequest for one that is unknown or stands twice."""
    for name in query:
        if name not in known:
            near = difflib.get_close_matches(name[:100], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
            raise _wrong(name[:100], f"is no parameter here; {hint}")
        if len(query.getall(name)) > 1:
            raise _wrong(name, "stands twice")
    return dict(query)


def page(given: Mapping[str, str]) -> dict[str, Any]:
    """`page_size` and `page_token` (or `cursor`) of a list. Raises InvalidRequest. Above 1,000 a page has 1,000."""
    if "cursor" in given and "page_token" in given:
        raise _wrong("cursor", "and page_token are the same: give one")
    return {
        "page_size": min(whole(given, "page_size"), _MAX_PAGE),
        "page_token": given.get("page_token", given.get("cursor", "")),
    }


def whole(given: Mapping[str, str], name: str) -> int:
    """A whole number of 0 or more among the parameters; 0 when it is not there. Raises InvalidRequest."""
    text = given.get(name, "")
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise _wrong(name, "takes a whole number")
    return int(text)


LOG_PARAMETERS = ("token", "token_id", "model", "state", "from", "until", "page_size", "page_token", "cursor")


def list_from_query(query: MultiMapping[str]) -> requests_pb2.ListRequestsRequest:
    """Which calls a query asks for. Raises InvalidRequest."""
    given = parameters(query, LOG_PARAMETERS)
    wanted = requests_pb2.RequestFilter(
        token_id=whole(given, "token_id"),
        token_name=given.get("token", ""),
        model=given.get("model", ""),
        state=given.get("state", ""),
    )
    if "from" in given:
        # `from` is a word of Python's, so the generated class has no attribute of that name.
        getattr(wanted, "from").FromDatetime(_moment("from", given["from"]))
    if "until" in given:
        wanted.until.FromDatetime(_moment("until", given["until"], through_the_day=True))
    return requests_pb2.ListRequestsRequest(filter=wanted, **page(given))


def request_to_json(call: requests_pb2.RequestRecord) -> dict[str, Any]:
    """One call, amounts in currency units; null where a thing is not known."""
    return {
        "request_id": call.request_id,
        "at": moment_to_json(call.admitted_at),
        "token_id": call.token_id,
        "token_name": call.token_name,
        "model": call.request_model,
        "response_model": call.response_model or None,
        "provider": call.provider or None,
        "endpoint": call.endpoint,
        "stream": call.stream,
        "state": call.state,
        "status": call.status or None,
        "error_code": call.error_code or None,
        "input_tokens": call.input_tokens,
        "cached_input_tokens": call.cached_input_tokens,
        "output_tokens": call.output_tokens,
        "reasoning_tokens": call.reasoning_tokens,
        "total_tokens": call.input_tokens + call.output_tokens,
        "amount": to_json_number(call.cost_nanos),
        "source": call.usage_source or None,
        "held": to_json_number(call.held_nanos),
        "ttft_ms": call.ttft_ms or None,
        "duration_ms": call.duration_ms or None,
        "client_ip": call.client_ip,
        "user_agent": call.user_agent,
        "parent_request_id": call.parent_request_id or None,
        "settled_at": moment_to_json(call.settled_at) if call.HasField("settled_at") else None,
    }


def refusal_to_json(refusal: requests_pb2.RefusalRecord) -> dict[str, Any]:
    """One refusal, amounts in currency units; null where a thing is not known. `state` tells it from a call."""
    row = TABLE.get(refusal.reason)
    return {
        "request_id": refusal.request_id,
        "at": moment_to_json(refusal.refused_at),
        "token_id": refusal.token_id or None,
        "token_name": refusal.token_name or None,
        "model": refusal.request_model or None,
        "endpoint": refusal.endpoint or None,
        "state": "refused",
        "error_code": None if row is None else row.code,
        "reason": refusal.reason.lower(),
        "message": refusal.message,
        "limit": refusal.limit or None,
        "limit_value": refusal.limit_value if refusal.HasField("limit_value") else None,
        "remaining": to_json_number(refusal.remaining_nanos) if refusal.HasField("remaining_nanos") else None,
        "held": to_json_number(refusal.held_nanos) if refusal.HasField("held_nanos") else None,
        "needed": to_json_number(refusal.needed_nanos) if refusal.HasField("needed_nanos") else None,
        "resets_at": moment_to_json(refusal.resets_at) if refusal.HasField("resets_at") else None,
        "client_ip": refusal.client_ip,
    }


_CSV_COLUMNS = tuple(request_to_json(requests_pb2.RequestRecord()))


def format_of(accept: str) -> str:
    """The media type to answer with: the first one of ours that the caller names, else JSON."""
    for part in accept.split(","):
        media = part.partition(";")[0].strip().lower()
        if media in {JSON, NDJSON, CSV}:
            return media
    return JSON


def lines(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as NDJSON: one a line."""
    return "".join(_line(record) + "\n" for record in records)


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """The calls as CSV with a header. Text that a spreadsheet would take for a formula is led by an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_CSV_COLUMNS)
    writer.writerows([_cell(record[name]) for name in _CSV_COLUMNS] for record in records)
    return out.getvalue()


def document(name: str, records: Sequence[Mapping[str, Any]], next_page_token: str) -> str:
    """The records as one JSON object with each of them on a line of its own, so that grep gives whole records."""
    inside = ",\n".join(_line(record) for record in records)
    listed = f"[\n{inside}\n]" if records else "[]"
    return f'{{"{name}": {listed}, "next_page_token": {json.dumps(next_page_token or None)}}}\n'


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False).translate(_LINE_ENDS)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value


def _moment(name: str, text: str, *, through_the_day: bool = False) -> datetime:
    # In a query a plus sign means a space, and people forget to write %2B for that of `+01:00`.
    written = text.strip().replace(" ", "+") if "T" in text else text.strip()
    try:
        moment = datetime.fromisoformat(written)
        if through_the_day and len(written) <= len("2027-01-31"):
            moment += timedelta(days=1)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _wrong(name, "takes a moment such as 2027-01-31 or 2027-01-31T12:00:00Z") from None


def _wrong(name: str, fault: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {fault}", metadata={"param": name})
