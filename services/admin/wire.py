"""Between the messages of `gateway.admin.v1` and the values of the domain. Nothing is decided here but how a field is read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.client_tokens import CHANGEABLE, SOFT, STRICT, ClientToken, NewToken, checked, new_token
from gateway.clock import from_text
from gateway.errors import InvalidArgument
from gateway.limits import Period
from gateway.quota import TokenStatus
from gateway.storage.audit import AuditEntry
from gateway.storage.refusals import KeptRefusal
from gateway.storage.request_log import LoggedRequest, RequestFilter
from gateway.storage.sessions import TERMINAL, WEB, Session
from gateway.stubs.admin.v1 import audit_pb2, requests_pb2, sessions_pb2, tokens_pb2
from services.admin.listing import filter_text

_MODES = {
    tokens_pb2.BUDGET_MODE_UNSPECIFIED: STRICT,
    tokens_pb2.BUDGET_MODE_STRICT: STRICT,
    tokens_pb2.BUDGET_MODE_SOFT: SOFT,
}
_MODE_NUMBERS = {STRICT: tokens_pb2.BUDGET_MODE_STRICT, SOFT: tokens_pb2.BUDGET_MODE_SOFT}
_PERIODS = {
    tokens_pb2.BUDGET_PERIOD_UNSPECIFIED: Period.TOTAL,
    tokens_pb2.BUDGET_PERIOD_TOTAL: Period.TOTAL,
    tokens_pb2.BUDGET_PERIOD_DAILY: Period.DAILY,
    tokens_pb2.BUDGET_PERIOD_WEEKLY: Period.WEEKLY,
    tokens_pb2.BUDGET_PERIOD_MONTHLY: Period.MONTHLY,
}
_PERIOD_NUMBERS = {period: number for number, period in _PERIODS.items()}
_STATUSES = {
    TokenStatus.ACTIVE: tokens_pb2.TOKEN_STATUS_ACTIVE,
    TokenStatus.DISABLED: tokens_pb2.TOKEN_STATUS_DISABLED,
    TokenStatus.EXPIRED: tokens_pb2.TOKEN_STATUS_EXPIRED,
    TokenStatus.EXHAUSTED: tokens_pb2.TOKEN_STATUS_EXHAUSTED,
}
_KINDS = {
    sessions_pb2.SESSION_KIND_UNSPECIFIED: TERMINAL,
    sessions_pb2.SESSION_KIND_TERMINAL: TERMINAL,
    sessions_pb2.SESSION_KIND_WEB: WEB,
}
_KIND_NUMBERS = {TERMINAL: sessions_pb2.SESSION_KIND_TERMINAL, WEB: sessions_pb2.SESSION_KIND_WEB}

_CREATABLE = frozenset(CHANGEABLE) - {"enabled"}


# -- client tokens ------------------------------------------------------------------------------------------------------------


def new_token_from_proto(request: tokens_pb2.CreateTokenRequest) -> NewToken:
    """A new token as it is asked for. Raises InvalidArgument, also for fields that a new token does not take."""
    for field, _ in request.token.ListFields():
        if field.name not in _CREATABLE:
            raise InvalidArgument(
                f"{field.name} cannot be set: a new token takes {', '.join(sorted(_CREATABLE))}", metadata={"param": field.name}
            )
    values = {name: value for name in _CREATABLE if (value := _field(request.token, name)) is not None}
    return new_token(values | {"enabled": not request.disabled}, secret=request.secret or None)


def changes_from_proto(request: tokens_pb2.UpdateTokenRequest) -> dict[str, Any]:
    """The fields that the mask names with their new values, None where they are to be cleared. Raises InvalidArgument."""
    paths = list(dict.fromkeys(request.update_mask.paths))
    if not paths:
        raise InvalidArgument("update_mask names the fields to change", metadata={"param": "update_mask"})
    for path in paths:
        if path not in CHANGEABLE:
            raise InvalidArgument(
                f"update_mask: {path[:100]!r} cannot be changed; {', '.join(CHANGEABLE)} can", metadata={"param": "update_mask"}
            )
    return checked({path: _field(request.token, path) for path in paths})


def _field(token: tokens_pb2.Token, name: str) -> Any:
    match name:
        case _ if tokens_pb2.Token.DESCRIPTOR.fields_by_name[name].has_presence and not token.HasField(name):  # type: ignore[arg-type] # a name that may be absent
            return None
        case "expires_at":
            return moment_from_proto(token.expires_at, name)
        case "budget_mode":
            if token.budget_mode not in _MODES:
                raise InvalidArgument("budget_mode is strict or soft", metadata={"param": name})
            return _MODES[token.budget_mode]
        case "budget_period":
            if token.budget_period not in _PERIODS:
                raise InvalidArgument("budget_period is total, daily, weekly or monthly", metadata={"param": name})
            return _PERIODS[token.budget_period]
        case "allowed_models" | "allowed_ips":
            return list(getattr(token, name))
        case _:
            return getattr(token, name)


def token_to_proto(token: ClientToken, now: datetime) -> tokens_pb2.Token:
    """A token, and what it can do now."""
    message = tokens_pb2.Token(
        id=token.id,
        name=token.name,
        display_hint=token.display_hint,
        weak=token.weak,
        allowed_models=token.allowed_models,
        enabled=token.enabled,
        customer=token.customer,
        remark=token.remark,
        created_at=moment_to_proto(token.created_at),
        version=token.version,
        max_amount_nanos=token.max_amount_nanos,
        budget_mode=_MODE_NUMBERS[token.budget_mode],
        amount_spent_nanos=token.amount_spent_nanos,
        held_nanos=token.held_nanos,
        remaining_nanos=token.remaining_nanos,
        prompt_tokens=token.prompt_tokens,
        completion_tokens=token.completion_tokens,
        request_count=token.request_count,
        status=_STATUSES[token.status(now)],
        budget_period=_PERIOD_NUMBERS[Period(token.budget_period)],
        requests_per_minute=token.requests_per_minute,
        tokens_per_minute=token.tokens_per_minute,
        max_parallel_requests=token.max_parallel_requests,
        allowed_ips=token.allowed_ips,
        period_spent_nanos=token.period_spent_nanos,
        open_calls=token.open_calls,
    )
    _set_moment(message.resets_at, token.resets_at)
    _set_moment(message.previous_valid_until, token.previous_valid_until)
    _set_moment(message.expires_at, token.expires_at)
    _set_moment(message.last_used_at, token.last_used_at)
    return message


# -- sessions -----------------------------------------------------------------------------------------------------------------


def kind_from_proto(kind: int) -> str:
    """How a session is carried. Raises InvalidArgument."""
    if kind not in _KINDS:
        raise InvalidArgument("kind is terminal or web", metadata={"param": "kind"})
    return _KINDS[sessions_pb2.SessionKind.ValueType(kind)]


def session_to_proto(session: Session) -> sessions_pb2.Session:
    """A session."""
    return sessions_pb2.Session(
        id=session.id,
        username=session.username,
        role=session.role,
        kind=_KIND_NUMBERS[session.kind],
        created_at=moment_to_proto(session.created_at),
        expires_at=moment_to_proto(session.expires_at),
        last_used_at=moment_to_proto(session.last_used_at),
        client_ip=session.client_ip,
        user_agent=session.user_agent,
    )


# -- request log and audit log ------------------------------------------------------------------------------------------------


def filter_from_proto(message: requests_pb2.RequestFilter) -> RequestFilter:
    """Which calls are asked for. Raises InvalidArgument."""
    # `from` is a word of Python's, so the generated class has no attribute of that name.
    since: Timestamp | None = getattr(message, "from") if message.HasField("from") else None
    return RequestFilter(
        token_id=message.token_id,
        token_name=filter_text("token_name", message.token_name),
        model=filter_text("model", message.model),
        state=message.state,
        since=None if since is None else moment_from_proto(since, "from"),
        until=moment_from_proto(message.until, "until") if message.HasField("until") else None,
    )


def request_to_proto(request: LoggedRequest) -> requests_pb2.RequestRecord:
    """One call."""
    message = requests_pb2.RequestRecord(
        **{name: getattr(request, name) for name in _PLAIN_REQUEST_FIELDS}, admitted_at=moment_to_proto(request.admitted_at)
    )
    _set_moment(message.settled_at, request.settled_at)
    return message


_FIGURES: Final = ("limit_value", "remaining_nanos", "held_nanos", "needed_nanos")


def refusal_to_proto(refusal: KeptRefusal) -> requests_pb2.RefusalRecord:
    """One refusal."""
    figures = refusal.figures
    message = requests_pb2.RefusalRecord(
        request_id=refusal.request_id,
        refused_at=moment_to_proto(from_text(refusal.at)),
        token_id=refusal.token_id,
        token_name=refusal.token_name,
        endpoint=refusal.endpoint,
        request_model=refusal.request_model,
        reason=refusal.reason,
        message=refusal.message,
        client_ip=refusal.client_ip,
        limit=figures.get("limit", ""),
    )
    for name in _FIGURES:
        if name in figures:
            setattr(message, name, int(figures[name]))
    if "resets_at" in figures:
        message.resets_at.CopyFrom(moment_to_proto(from_text(figures["resets_at"])))
    return message


def audit_to_proto(entry: AuditEntry) -> audit_pb2.AuditRecord:
    """One record."""
    return audit_pb2.AuditRecord(
        id=entry.id,
        at=moment_to_proto(entry.at),
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        before_json=entry.before_json,
        after_json=entry.after_json,
        client_ip=entry.client_ip,
        request_id=entry.request_id,
    )


_PLAIN_REQUEST_FIELDS = tuple(
    field.name for field in requests_pb2.RequestRecord.DESCRIPTOR.fields if field.name not in {"admitted_at", "settled_at"}
)


# -- moments ------------------------------------------------------------------------------------------------------------------


def moment_to_proto(moment: datetime) -> Timestamp:
    """A moment as a timestamp."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def moment_from_proto(stamp: Timestamp, field: str) -> datetime:
    """A timestamp as a moment, to the microsecond. Raises InvalidArgument for one before the year 1 or after 9999."""
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{field} is no moment between the years 1 and 9999", metadata={"param": field}) from None


def _set_moment(stamp: Timestamp, moment: datetime | None) -> None:
    if moment is not None:
        stamp.FromDatetime(moment)
