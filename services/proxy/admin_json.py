"""Between JSON, as people and their programs write it to the HTTP door of admin, and the messages of `gateway.admin.v1`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.clock import parse_expiry
from gateway.errors import InvalidRequest
from gateway.money import CURRENCY, to_json_number, to_nanos
from gateway.stubs.admin.v1 import audit_pb2, sessions_pb2, tokens_pb2, usage_pb2

_MODES = {"strict": tokens_pb2.BUDGET_MODE_STRICT, "soft": tokens_pb2.BUDGET_MODE_SOFT}
_PERIODS = {
    "total": tokens_pb2.BUDGET_PERIOD_TOTAL,
    "daily": tokens_pb2.BUDGET_PERIOD_DAILY,
    "weekly": tokens_pb2.BUDGET_PERIOD_WEEKLY,
    "monthly": tokens_pb2.BUDGET_PERIOD_MONTHLY,
}
_PERIOD_NAMES = {number: name for name, number in _PERIODS.items()}
_MODE_NAMES = {number: name for name, number in _MODES.items()}
_STATUS_NAMES = {
    tokens_pb2.TOKEN_STATUS_ACTIVE: "active",
    tokens_pb2.TOKEN_STATUS_DISABLED: "disabled",
    tokens_pb2.TOKEN_STATUS_EXPIRED: "expired",
    tokens_pb2.TOKEN_STATUS_EXHAUSTED: "exhausted",
}
_KINDS = {"terminal": sessions_pb2.SESSION_KIND_TERMINAL, "web": sessions_pb2.SESSION_KIND_WEB}
_KIND_NAMES = {number: name for name, number in _KINDS.items()}

_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_parallel_requests")
_CHANGEABLE = (
    "name",
    "allowed_models",
    "allowed_ips",
    "enabled",
    "expires_at",
    "customer",
    "remark",
    "max_amount",
    "budget_mode",
    "budget_period",
    *_LIMITS,
)
_CREATABLE = (*_CHANGEABLE, "token", "request_id")
_UPDATABLE = (*_CHANGEABLE, "version")
_TOLD_ONLY = frozenset(
    """
    id display_hint weak status created_at last_used_at amount_spent held remaining currency prompt_tokens completion_tokens
    total_tokens request_count version token token_hash warnings period_spent resets_at open_calls previous_valid_until
    revived
    """.split()  # noqa: SIM905 - a list of words is easier to read as words
)


# -- requests -----------------------------------------------------------------------------------------------------------------


def login_from_json(members: Mapping[str, Any]) -> sessions_pb2.LoginRequest:
    """`{"username", "password", "kind": "terminal" or "web"}`. Raises InvalidRequest."""
    _require_known(members, ("username", "password", "kind"))
    kind = members.get("kind")
    if kind is None:
        kind = "terminal"
    if not isinstance(kind, str) or kind not in _KINDS:
        raise _wrong("kind", 'takes "terminal" or "web"')
    return sessions_pb2.LoginRequest(
        username=_text(members, "username", required=True),
        password=_text(members, "password", required=True),
        kind=_KINDS[kind],
    )


def password_from_json(members: Mapping[str, Any]) -> sessions_pb2.ChangePasswordRequest:
    """`{"old_password", "new_password"}`. Raises InvalidRequest."""
    _require_known(members, ("old_password", "new_password"))
    return sessions_pb2.ChangePasswordRequest(
        old_password=_text(members, "old_password", required=True), new_password=_text(members, "new_password", required=True)
    )


def create_from_json(members: Mapping[str, Any]) -> tokens_pb2.CreateTokenRequest:
    """A new token; every field may be left out or null. Raises InvalidRequest that names the field and what it takes."""
    _require_known(members, _CREATABLE)
    given = {name: value for name, value in members.items() if value is not None}
    enabled = given.pop("enabled", True)
    if not isinstance(enabled, bool):
        raise _wrong("enabled", "takes true or false")
    if given.get("token") == "":
        raise _wrong("token", "takes 8 to 256 printable ASCII characters; leave it out to have one made")
    token = tokens_pb2.Token()
    for name in _CHANGEABLE:
        if name in given:
            _set(token, name, given[name])
    return tokens_pb2.CreateTokenRequest(
        request_id=_text(given, "request_id"), token=token, secret=_text(given, "token"), disabled=not enabled
    )


def update_from_json(token_id: int, members: Mapping[str, Any]) -> tokens_pb2.UpdateTokenRequest:
    """A change: what is absent stays, null clears. Raises InvalidRequest that names the field and what it takes."""
    _require_known(members, _UPDATABLE)
    request = tokens_pb2.UpdateTokenRequest(token=tokens_pb2.Token(id=token_id))
    for name, value in members.items():
        if name == "version":
            request.token.version = _whole(name, value)
            continue
        if name == "enabled" and value is None:
            raise _wrong("enabled", "takes true or false")
        request.update_mask.paths.append("max_amount_nanos" if name == "max_amount" else name)
        if value is not None:
            _set(request.token, name, value)
    if not request.update_mask.paths:
        raise InvalidRequest(f"Nothing to change: give one of {', '.join(_CHANGEABLE)}.")
    return request


def toggle_from_json(token_id: int, members: Mapping[str, Any]) -> tokens_pb2.SetTokenEnabledRequest:
    """`{"enabled": true or false}`; nothing: the other way round. Raises InvalidRequest."""
    _require_known(members, ("enabled",))
    enabled = members.get("enabled")
    if enabled is not None and not isinstance(enabled, bool):
        raise _wrong("enabled", "takes true or false")
    return tokens_pb2.SetTokenEnabledRequest(id=token_id, enabled=enabled)


def rotate_from_json(token_id: int, members: Mapping[str, Any]) -> tokens_pb2.RotateTokenRequest:
    """`{"grace_seconds": 3600}`, with a `request_id` where wanted, or nothing. Raises InvalidRequest."""
    _require_known(members, ("grace_seconds", "request_id"))
    grace = members.get("grace_seconds")
    return tokens_pb2.RotateTokenRequest(
        id=token_id,
        request_id=_text(members, "request_id"),
        grace_seconds=0 if grace is None else _whole("grace_seconds", grace),
    )


def top_up_from_json(token_id: int, members: Mapping[str, Any]) -> tokens_pb2.TopUpTokenRequest:
    """`{"amount": 5}`, with a `request_id` where wanted. Raises InvalidRequest."""
    _require_known(members, ("amount", "request_id"))
    amount = _amount("amount", members.get("amount"))
    if amount == 0:
        raise _wrong("amount", "takes a number above 0, such as 5")
    return tokens_pb2.TopUpTokenRequest(id=token_id, amount_nanos=amount, request_id=_text(members, "request_id"))


def _set(token: tokens_pb2.Token, name: str, value: Any) -> None:
    match name:
        case "max_amount":
            token.max_amount_nanos = _amount(name, value)
        case "allowed_models":
            token.allowed_models.extend(_list(name, value, '["gpt-4*", "claude-3"], or "gpt-4*,claude-3"'))
        case "allowed_ips":
            token.allowed_ips.extend(_list(name, value, '["192.0.2.7", "10.0.0.0/8"], or "192.0.2.7,10.0.0.0/8"'))
        case "expires_at":
            token.expires_at.FromDatetime(_expiry(value))
        case "budget_mode":
            if not isinstance(value, str) or value not in _MODES:
                raise _wrong(name, 'takes "strict" or "soft"')
            token.budget_mode = _MODES[value]
        case "budget_period":
            if not isinstance(value, str) or value not in _PERIODS:
                raise _wrong(name, 'takes "total", "daily", "weekly" or "monthly"')
            token.budget_period = _PERIODS[value]
        case _ if name in _LIMITS:
            setattr(token, name, _whole(name, value))
        case "enabled":
            if not isinstance(value, bool):
                raise _wrong(name, "takes true or false")
            token.enabled = value
        case _:
            setattr(token, name, _text({name: value}, name))


def _amount(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise _wrong(name, "takes a number in currency units, such as 12.5")
    try:
        return to_nanos(value)
    except (ValueError, ArithmeticError) as error:
        raise _wrong(name, f"is wrong: {error}") from None


def _list(name: str, value: Any, example: str) -> list[str]:
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise _wrong(name, f"takes a list such as {example}")
    return [_encodable(name, entry) for entry in entries]


def _expiry(value: Any) -> datetime:
    if not isinstance(value, str):
        raise _wrong("expires_at", 'takes a text such as "2027-01-31" or "2027-01-31T12:00:00Z"')
    try:
        return parse_expiry(value)
    except (ValueError, OverflowError) as error:
        raise _wrong("expires_at", f"is wrong: {error}") from None


def _text(members: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    value = members.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise _wrong(name, "is missing" if value is None else "takes a text")
    return _encodable(name, value)


def _encodable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong(name, "holds half a surrogate pair") from None
    return text


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise _wrong(name, "takes a whole number of 0 or more")
    return value


def _require_known(members: Mapping[str, Any], known: Collection[str]) -> None:
    for name in members:
        if name in known:
            continue
        shown = name[:100]
        if name in _TOLD_ONLY:
            raise _wrong(shown, f"cannot be set here; what can: {', '.join(known)}")
        near = difflib.get_close_matches(shown, known, n=1)
        raise _wrong(
            shown, f"is no field here; did you mean {near[0]}?" if near else f"is no field here; known: {', '.join(known)}"
        )


def _wrong(name: str, fault: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {fault}", metadata={"param": name})


# As other readers of bodies use them, such as `admin_books`.
read_text, require_known, refusal = _text, _require_known, _wrong


# -- answers ------------------------------------------------------------------------------------------------------------------


def token_to_json(token: tokens_pb2.Token) -> dict[str, Any]:
    """A token, amounts in currency units."""
    return {
        "id": token.id,
        "name": token.name,
        "display_hint": token.display_hint,
        "weak": token.weak,
        "allowed_models": list(token.allowed_models),
        "enabled": token.enabled,
        "status": _STATUS_NAMES.get(token.status, ""),
        "expires_at": moment_to_json(token.expires_at) if token.HasField("expires_at") else None,
        "customer": token.customer,
        "remark": token.remark,
        "created_at": moment_to_json(token.created_at),
        "last_used_at": moment_to_json(token.last_used_at) if token.HasField("last_used_at") else None,
        "max_amount": to_json_number(token.max_amount_nanos) if token.HasField("max_amount_nanos") else None,
        "amount_spent": to_json_number(token.amount_spent_nanos),
        "held": to_json_number(token.held_nanos),
        "remaining": to_json_number(token.remaining_nanos) if token.HasField("remaining_nanos") else None,
        "currency": CURRENCY,
        "budget_mode": _MODE_NAMES.get(token.budget_mode, ""),
        "budget_period": _PERIOD_NAMES.get(token.budget_period, ""),
        "period_spent": to_json_number(token.period_spent_nanos),
        "resets_at": moment_to_json(token.resets_at) if token.HasField("resets_at") else None,
        "requests_per_minute": token.requests_per_minute if token.HasField("requests_per_minute") else None,
        "tokens_per_minute": token.tokens_per_minute if token.HasField("tokens_per_minute") else None,
        "max_parallel_requests": token.max_parallel_requests if token.HasField("max_parallel_requests") else None,
        "open_calls": token.open_calls,
        "allowed_ips": list(token.allowed_ips),
        "previous_valid_until": (
            moment_to_json(token.previous_valid_until) if token.HasField("previous_valid_until") else None
        ),
        "prompt_tokens": token.prompt_tokens,
        "completion_tokens": token.completion_tokens,
        "total_tokens": token.prompt_tokens + token.completion_tokens,
        "request_count": token.request_count,
        "version": token.version,
    }


def customer_to_json(customer: usage_pb2.CustomerUsage) -> dict[str, Any]:
    """A customer's totals, amounts in currency units."""
    return {
        "customer": customer.customer,
        "tokens": customer.tokens,
        "deleted_tokens": customer.deleted_tokens,
        "requests": customer.requests,
        "prompt_tokens": customer.prompt_tokens,
        "completion_tokens": customer.completion_tokens,
        "total_tokens": customer.prompt_tokens + customer.completion_tokens,
        "amount_spent": to_json_number(customer.amount_spent_nanos),
        "held": to_json_number(customer.held_nanos),
        "currency": CURRENCY,
    }


def session_to_json(session: sessions_pb2.Session) -> dict[str, Any]:
    """A session, without its secret."""
    return {
        "id": session.id,
        "username": session.username,
        "role": session.role,
        "kind": _KIND_NAMES.get(session.kind, ""),
        "created_at": moment_to_json(session.created_at),
        "expires_at": moment_to_json(session.expires_at),
        "last_used_at": moment_to_json(session.last_used_at),
        "client_ip": session.client_ip,
        "user_agent": session.user_agent,
    }


def audit_to_json(record: audit_pb2.AuditRecord) -> dict[str, Any]:
    """A record of the audit log."""
    return {
        "id": record.id,
        "at": moment_to_json(record.at),
        "actor": record.actor,
        "action": record.action,
        "subject": record.subject,
        "before": json.loads(record.before_json) if record.before_json else None,
        "after": json.loads(record.after_json) if record.after_json else None,
        "client_ip": record.client_ip,
        "request_id": record.request_id or None,
    }


def moment_to_json(stamp: Timestamp) -> str:
    """A moment as ISO text in UTC."""
    return stamp.ToDatetime(tzinfo=UTC).isoformat().replace("+00:00", "Z")
