"""Tokens as the command line shows them: the field names of the HTTP API, money in currency units."""

from __future__ import annotations

from datetime import UTC
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.money import CURRENCY, to_json_number, to_units
from gateway.stubs.admin.v1 import tokens_pb2 as pb

_LimitName = Literal["requests_per_minute", "tokens_per_minute", "max_parallel_requests"]
_STATUS = {
    pb.TOKEN_STATUS_ACTIVE: "active",
    pb.TOKEN_STATUS_DISABLED: "disabled",
    pb.TOKEN_STATUS_EXPIRED: "expired",
    pb.TOKEN_STATUS_EXHAUSTED: "exhausted",
}
PERIODS = {
    "total": pb.BUDGET_PERIOD_TOTAL,
    "daily": pb.BUDGET_PERIOD_DAILY,
    "weekly": pb.BUDGET_PERIOD_WEEKLY,
    "monthly": pb.BUDGET_PERIOD_MONTHLY,
}
_PERIOD_NAMES = {value: name for name, value in PERIODS.items()}
_LIMITS: dict[_LimitName, str] = {
    "requests_per_minute": "calls a minute",
    "tokens_per_minute": "tokens a minute",
    "max_parallel_requests": "calls at once",
}
MODES = {"strict": pb.BUDGET_MODE_STRICT, "soft": pb.BUDGET_MODE_SOFT}
_MODE_NAMES = {value: name for name, value in MODES.items()}


def token_to_json(token: pb.Token, secret: str = "") -> dict[str, Any]:
    """A token as `--json` shows it; with its secret as `token` where there is one to tell."""
    shown: dict[str, Any] = {"id": token.id, "name": token.name}
    if secret:
        shown["token"] = secret
    return shown | {
        "display_hint": token.display_hint,
        "weak": token.weak,
        "allowed_models": list(token.allowed_models),
        "enabled": token.enabled,
        "status": _STATUS.get(token.status, ""),
        "expires_at": _moment(token, "expires_at"),
        "max_amount": to_json_number(token.max_amount_nanos) if token.HasField("max_amount_nanos") else None,
        "budget_mode": _MODE_NAMES.get(token.budget_mode, "strict"),
        "amount_spent": to_json_number(token.amount_spent_nanos),
        "held": to_json_number(token.held_nanos),
        "remaining": to_json_number(token.remaining_nanos) if token.HasField("remaining_nanos") else None,
        "currency": CURRENCY,
        "budget_period": _PERIOD_NAMES.get(token.budget_period, "total"),
        "period_spent": to_json_number(token.period_spent_nanos),
        "resets_at": _moment(token, "resets_at"),
        **_limits(token),
        "open_calls": token.open_calls,
        "allowed_ips": list(token.allowed_ips),
        "previous_valid_until": _moment(token, "previous_valid_until"),
        "prompt_tokens": token.prompt_tokens,
        "completion_tokens": token.completion_tokens,
        "total_tokens": token.prompt_tokens + token.completion_tokens,
        "request_count": token.request_count,
        "customer": token.customer,
        "remark": token.remark,
        "created_at": _moment(token, "created_at"),
        "last_used_at": _moment(token, "last_used_at"),
        "version": token.version,
    }


def token_to_fields(token: pb.Token, secret: str = "") -> dict[str, str]:
    """A token as people read it, a line a field."""
    shown = {"id": str(token.id), "name": token.name}
    if secret:
        shown["token"] = f"{secret}  (shown once)"
        if (until := _moment(token, "previous_valid_until")) is not None:
            shown["old token"] = f"works until {until}"
    shown |= {
        "status": _STATUS.get(token.status, ""),
        "models": ", ".join(token.allowed_models) or "all",
        "spent": amount(token.amount_spent_nanos),
        "budget": budget(token),
        **_period(token),
        **{what: str(getattr(token, name)) for name, what in _LIMITS.items() if token.HasField(name)},
        **({"addresses": ", ".join(token.allowed_ips)} if token.allowed_ips else {}),
        "expires": _moment(token, "expires_at") or "never",
        "calls": str(token.request_count),
        "last used": _moment(token, "last_used_at") or "never",
    }
    return shown | {
        name: text
        for name, text in (("customer", token.customer), ("remark", token.remark), ("hint", token.display_hint))
        if text
    }


def token_to_row(token: pb.Token) -> tuple[str, ...]:
    """A token as a row of the list; ROW_HEADINGS names its columns."""
    return (
        str(token.id),
        token.name,
        _STATUS.get(token.status, ""),
        amount(token.amount_spent_nanos),
        budget(token),
        ",".join(token.allowed_models) or "all",
        _moment(token, "expires_at") or "never",
        token.display_hint,
    )


ROW_HEADINGS = ("id", "name", "status", "spent", "budget", "models", "expires", "token")


def amount(nanos: int) -> str:
    """Money for people: all its decimals, at least two, never a power of ten."""
    whole, _, decimals = f"{to_units(nanos):f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def moment(stamp: Timestamp) -> str:
    """A moment as ISO text in UTC."""
    return stamp.ToDatetime(tzinfo=UTC).isoformat().replace("+00:00", "Z")


def budget(token: pb.Token) -> str:
    """A token's budget for people."""
    if not token.HasField("max_amount_nanos"):
        return "none"
    soft = " soft" if token.budget_mode == pb.BUDGET_MODE_SOFT else ""
    period = _PERIOD_NAMES.get(token.budget_period, "total")
    return f"{amount(token.max_amount_nanos)}{'' if period == 'total' else f' {period}'}{soft}"


def _limits(token: pb.Token) -> dict[str, Any]:
    return {name: getattr(token, name) if token.HasField(name) else None for name in _LIMITS}


def _period(token: pb.Token) -> dict[str, str]:
    """What a budget with periods has that another one has not."""
    resets_at = _moment(token, "resets_at")
    if resets_at is None:
        return {}
    return {"this period": amount(token.period_spent_nanos), "starts anew": resets_at}


_MomentName = Literal["expires_at", "created_at", "last_used_at", "resets_at", "previous_valid_until"]


def _moment(token: pb.Token, name: _MomentName) -> str | None:
    """A time as ISO text in UTC, None where it is absent."""
    if not token.HasField(name):
        return None
    return moment(getattr(token, name))
