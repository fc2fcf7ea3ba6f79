"""A client token as administrators see and change it: its fields, what each of them takes, and what it can do at a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from gateway.errors import InvalidArgument
from gateway.limits import Period, parse_addresses
from gateway.money import MAX_NANOS
from gateway.patterns import matches, parse_models
from gateway.quota import TokenStatus

MAX_NAME = 200
MAX_CUSTOMER = 200
MAX_REMARK = 2_000
MAX_ADDRESSES = 100
MAX_LIMIT = 2**31 - 1
"""Of calls or tokens a minute, and of calls at once."""
MAX_GRACE = timedelta(days=7)
"""For so long at most the secret before the last rotation works on."""

STRICT = "strict"
SOFT = "soft"


@dataclass(frozen=True, slots=True)
class ClientToken:
    """A token without its secret. Money in nano-dollars; `expires_at`: the last moment at which it works, None: never ends."""

    id: int
    name: str
    display_hint: str
    weak: bool
    allowed_models: tuple[str, ...]
    enabled: bool
    expires_at: datetime | None
    customer: str
    remark: str
    created_at: datetime
    last_used_at: datetime | None
    version: int
    max_amount_nanos: int | None
    budget_mode: str
    period_spent_nanos: int
    amount_spent_nanos: int
    held_nanos: int
    prompt_tokens: int
    completion_tokens: int
    request_count: int
    budget_period: str = Period.TOTAL
    resets_at: datetime | None = None
    """When the budget starts anew; None: never by itself."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_parallel_requests: int | None = None
    """These three: None: no limit; 0: nothing passes."""
    allowed_ips: tuple[str, ...] = ()
    """Addresses and networks; none: all."""
    open_calls: int = 0
    previous_valid_until: datetime | None = None
    """Until when the secret before this one works too; None: it does not."""

    @property
    def remaining_nanos(self) -> int | None:
        """What is left of the budget in this period, with what calls in flight hold; None: no budget.

        Negative when more was spent.
        """
        return None if self.max_amount_nanos is None else self.max_amount_nanos - self.period_spent_nanos

    def status(self, now: datetime) -> TokenStatus:
        """What it can do now: the first of disabled, expired and exhausted that holds, else active."""
        if not self.enabled:
            return TokenStatus.DISABLED
        if self.expires_at is not None and now > self.expires_at:
            return TokenStatus.EXPIRED
        if self.remaining_nanos is not None and self.remaining_nanos <= 0:
            return TokenStatus.EXHAUSTED
        return TokenStatus.ACTIVE


@dataclass(frozen=True, slots=True)
class NewToken:
    """What is asked for in a new token, checked. `name` empty: `token-<id>`; `secret` None: one is made."""

    name: str = ""
    allowed_models: tuple[str, ...] = ()
    enabled: bool = True
    expires_at: datetime | None = None
    customer: str = ""
    remark: str = ""
    max_amount_nanos: int | None = None
    budget_mode: str = STRICT
    budget_period: str = Period.TOTAL
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_parallel_requests: int | None = None
    allowed_ips: tuple[str, ...] = ()
    secret: str | None = field(default=None, repr=False)


CHANGEABLE = (
    "name",
    "allowed_models",
    "allowed_ips",
    "enabled",
    "expires_at",
    "customer",
    "remark",
    "max_amount_nanos",
    "budget_mode",
    "budget_period",
    "requests_per_minute",
    "tokens_per_minute",
    "max_parallel_requests",
)


def new_token(values: Mapping[str, Any], *, secret: str | None = None) -> NewToken:
    """A new token from field values (those of `CHANGEABLE`; None and absent are alike). Raises InvalidArgument."""
    return NewToken(**checked({name: value for name, value in values.items() if value is not None}), secret=secret)


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields with values as they are stored; None clears a field. Raises InvalidArgument with what the field takes."""
    return {name: _CHECKS[name](value) for name, value in values.items()}


def _name(value: str | None) -> str:
    return _line("name", value, MAX_NAME)


def _customer(value: str | None) -> str:
    return _line("customer", value, MAX_CUSTOMER)


def _remark(value: str | None) -> str:
    text = (value or "").strip()
    if len(text) > MAX_REMARK:
        raise _wrong("remark", f"has at most {MAX_REMARK} characters")
    if not text.replace("\n", " ").replace("\t", " ").replace("\r", " ").isprintable():
        raise _wrong("remark", "has printable characters and line ends only")
    return text


def _line(field_name: str, value: str | None, longest: int) -> str:
    text = (value or "").strip()
    if len(text) > longest:
        raise _wrong(field_name, f"has at most {longest} characters")
    if not text.isprintable():
        raise _wrong(field_name, "has printable characters only")
    return text


def _models(value: str | Iterable[str] | None) -> tuple[str, ...]:
    try:
        return parse_models(value or ())
    except ValueError as error:
        raise _wrong("allowed_models", f"is wrong: {error}") from None


def _enabled(value: bool | None) -> bool:
    if value is None:
        raise _wrong("enabled", "is true or false")
    return value


def _expires_at(value: datetime | None) -> datetime | None:
    return value


def _max_amount(value: int | None) -> int | None:
    if value is not None and not 0 <= value <= MAX_NANOS:
        raise _wrong("max_amount_nanos", f"is 0 to {MAX_NANOS}, or absent for no budget")
    return value


def _budget_mode(value: str | None) -> str:
    mode = value or STRICT
    if mode not in (STRICT, SOFT):
        raise _wrong("budget_mode", "is strict or soft")
    return mode


def _budget_period(value: str | None) -> str:
    try:
        return Period(value or Period.TOTAL)
    except ValueError:
        raise _wrong("budget_period", "is total, daily, weekly or monthly") from None


def _limit(field_name: str) -> Callable[[int | None], int | None]:
    def check(value: int | None) -> int | None:
        if value is not None and not 0 <= value <= MAX_LIMIT:
            raise _wrong(field_name, f"is 0 to {MAX_LIMIT}, or absent for no limit")
        return value

    return check


def _addresses(value: Iterable[str] | None) -> tuple[str, ...]:
    entries = [entry for entry in value or () if entry.strip()]
    if len(entries) > MAX_ADDRESSES:
        raise _wrong("allowed_ips", f"has at most {MAX_ADDRESSES} entries")
    try:
        return tuple(filter(None, (parse_addresses(entries) or "").split(",")))
    except ValueError as error:
        raise _wrong("allowed_ips", f"is wrong: {error}") from None


def check_grace(seconds: int) -> timedelta:
    """For how long a secret works on after a rotation. Raises InvalidArgument."""
    if not 0 <= seconds <= MAX_GRACE.total_seconds():
        raise _wrong("grace_seconds", f"is 0 to {MAX_GRACE.total_seconds():.0f}")
    return timedelta(seconds=seconds)


def _wrong(field_name: str, fault: str) -> InvalidArgument:
    return InvalidArgument(f"{field_name} {fault}", metadata={"param": field_name})


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "name": _name,
    "allowed_models": _models,
    "enabled": _enabled,
    "expires_at": _expires_at,
    "customer": _customer,
    "remark": _remark,
    "max_amount_nanos": _max_amount,
    "budget_mode": _budget_mode,
    "budget_period": _budget_period,
    "requests_per_minute": _limit("requests_per_minute"),
    "tokens_per_minute": _limit("tokens_per_minute"),
    "max_parallel_requests": _limit("max_parallel_requests"),
    "allowed_ips": _addresses,
}


# -- what the administrator may want to know --------------------------------------------------------------------------------


def expiry_warnings(expires_at: datetime | None, now: datetime) -> list[str]:
    """A warning where a token's last moment has passed already."""
    if expires_at is None or expires_at >= now:
        return []
    return [f"expires_at {expires_at:%Y-%m-%dT%H:%M:%SZ} has passed: the token opens nothing"]


def model_warnings(allowed: Iterable[str], served: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A warning for each name that no provider serves.

    served: the providers' names with the patterns of what they serve. A pattern of ours is known when it and one of theirs can
    stand for the same name, judged by what comes before their stars.
    """
    patterns = [pattern for theirs in served.values() for pattern in theirs]
    if not patterns:
        return []
    warnings = []
    for name in allowed:
        if "*" in name:
            start = name.split("*", 1)[0]
            if any(_overlap(start, pattern) for pattern in patterns):
                continue
            hint = ""
        else:
            if matches(name, patterns):
                continue
            near = sorted(pattern for pattern in patterns if "*" not in pattern and pattern.startswith(name))
            hint = f"; {name}* would open {', '.join(near[:3])}" if near else f"; {name}* opens all names that begin so"
        warnings.append(f"allowed_models: no provider serves {name!r} now{hint}")
    return warnings


def _overlap(start: str, pattern: str) -> bool:
    other = pattern.split("*", 1)[0]
    return start.startswith(other) if "*" in pattern and len(other) <= len(start) else other.startswith(start)
