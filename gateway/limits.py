"""A token's limits besides its budget: budget periods, requests and tokens a minute, calls in parallel, addresses. Pure.

Minutes and periods are those of UTC. A clock that was set back counts on in the period that the token is in, and in its minute
where that is at most one minute ahead.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache

from gateway.clock import from_text, to_text
from gateway.errors import IpNotAllowed, RateLimited, Refusal

MINUTE = timedelta(minutes=1)
PARALLEL_RETRY_AFTER = 1.0  # seconds until one of the open calls may have ended
_ASSUMED_OUTPUT = 256  # tokens that a call without a limit of its own is counted with until it is settled
_MAPPED_BITS = 96  # of an IPv6 address that holds an IPv4 one, before it
_BYTES_A_TOKEN = 4  # of the input, until it is settled; the bound of admission counts one

REQUESTS = "requests_per_minute"
TOKENS = "tokens_per_minute"
PARALLEL = "max_parallel_requests"
BUDGET = "max_amount"


class Period(StrEnum):
    """How often a budget starts anew: never, at midnight, on Monday, on the first."""

    TOTAL = "total"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


@dataclass(slots=True)
class Window:
    """What a token has used, and what it may. Limits: None: none at all; 0: nothing may pass. Times as the database's text."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_parallel_requests: int | None = None
    open_calls: int = 0
    window_start: str | None = None
    """The minute that the two counters are of."""
    window_requests: int = 0
    window_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One limit a minute as a caller is told of it. `resets_at`: when it starts anew."""

    name: str
    limit: int
    remaining: int
    resets_at: datetime


def period_start(period: str, now: datetime) -> str | None:
    """When the period began that `now` lies in; None: the budget has no periods."""
    if period == Period.TOTAL:
        return None
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case Period.DAILY:
            return to_text(day)
        case Period.WEEKLY:
            return to_text(day - timedelta(days=day.weekday()))
        case Period.MONTHLY:
            return to_text(day.replace(day=1))
    return None


def period_end(period: str, now: datetime) -> datetime | None:
    """When the budget starts anew; None: never by itself."""
    start = period_start(period, now)
    if start is None:
        return None
    begun = from_text(start)
    match period:
        case Period.DAILY:
            return begun + timedelta(days=1)
        case Period.WEEKLY:
            return begun + timedelta(days=7)
    return (begun + timedelta(days=32)).replace(day=1)


AHEAD = timedelta(hours=1)
"""By how much a period may have begun later than now: another machine's clock may be ahead of ours."""


def rolled(period: str, started: str | None, spent_nanos: int, now: datetime) -> tuple[str | None, int]:
    """The start of a token's current period and what was spent in it, after the reset that may be due.

    Where a person has written another period over a token's, its start is that of the new one, and the amount is only what is
    known here: the records say what was spent since then.
    """
    start = period_start(period, now)
    if start is None or started is None:
        return start, spent_nanos
    if started < start:
        return start, 0
    # Later than now: by a clock that was set back since, or the start of a shorter period that was written over. By far later:
    # by a clock that was wrong, and the budget would stay spent until then. The records say what was spent since `start`.
    if started > to_text(now + AHEAD):
        return start, 0
    return (started, spent_nanos) if started == period_start(period, from_text(started)) else (start, spent_nanos)


def enter_minute(window: Window, now: datetime) -> None:
    """Starts the counters anew where a new minute has begun, or where they are of a minute that no clock can be in yet."""
    minute, ahead = _minutes(now)
    if window.window_start is None or window.window_start < minute or window.window_start > ahead:
        window.window_start, window.window_requests, window.window_tokens = minute, 0, 0


def minute_of(moment: datetime) -> str:
    """The start of a moment's minute, as the database keeps it."""
    return to_text(moment.replace(second=0, microsecond=0))


@lru_cache(maxsize=8)  # the tokens of one batch have one now
def _minutes(now: datetime) -> tuple[str, str]:
    return minute_of(now), to_text(now + MINUTE)


def check_parallel(window: Window) -> Refusal | None:
    """Why one more call may not be open beside the others; None: it may."""
    most = window.max_parallel_requests
    if most is None or window.open_calls < most:
        return None
    if most == 0:
        return _shut(PARALLEL)
    return RateLimited(
        f"This token may have {_many(most, 'call')} open at once. Try again when one has ended.",
        retry_after=PARALLEL_RETRY_AFTER,
        metadata={"limit": PARALLEL, "limit_value": str(most)},
    )


def check_requests(window: Window, now: datetime) -> Refusal | None:
    """Why no more calls may begin in this minute; None: one more may. The counters are of this minute (`enter_minute`)."""
    most = window.requests_per_minute
    return None if most is None or window.window_requests < most else _full(REQUESTS, most, "call", window, now)


def check_tokens(window: Window, now: datetime) -> Refusal | None:
    """Why no more tokens may be used in this minute; None: some may. The counters are of this minute (`enter_minute`)."""
    most = window.tokens_per_minute
    return None if most is None or window.window_tokens < most else _full(TOKENS, most, "token", window, now)


def expected_tokens(input_token_ceiling: int, output_limit: int | None, choices: int) -> int:
    """With how many tokens an open call counts against the limit a minute, until its settlement says how many it used.

    input_token_ceiling: bytes, as admission bounds it. output_limit: for one choice, the caller's or the granted one.
    """
    output = _ASSUMED_OUTPUT if output_limit is None else output_limit
    return -(-input_token_ceiling // _BYTES_A_TOKEN) + choices * output


def rate_limits(window: Window, now: datetime) -> list[RateLimit]:
    """The limits a minute that a token has, with what is left of each in this minute."""
    if window.requests_per_minute is None and window.tokens_per_minute is None:
        return []
    resets_at = _end_of(window, now)
    limits = (
        (REQUESTS, window.requests_per_minute, window.window_requests),
        (TOKENS, window.tokens_per_minute, window.window_tokens),
    )
    return [RateLimit(name, most, max(0, most - used), resets_at) for name, most, used in limits if most is not None]


def check_address(allowed: str | None, client_ip: str) -> Refusal | None:
    """Why a caller at this address may not use the token; None: it may.

    allowed: addresses and networks with commas between them; None or empty: all. An entry that cannot be read allows nobody.
    """
    if not allowed or not allowed.strip():
        return None
    try:
        address = _unmapped(ipaddress.ip_address(client_ip))
    except ValueError:
        address = None
    if address is not None and any(network is not None and address in network for network in _networks(allowed)):
        return None
    return IpNotAllowed("This token may not be used from your address.")


def parse_addresses(entries: list[str]) -> str | None:
    """Addresses and networks as the database keeps them; None: all. Raises ValueError with the entry that is none."""
    read = []
    for entry in entries:
        text = entry.strip()
        try:
            network = _network(text)
        except ValueError:
            raise ValueError(f"{text!r} is no address: write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32") from None
        read.append(str(network.network_address) if network.num_addresses == 1 else str(network))
    return ",".join(dict.fromkeys(read)) or None


@lru_cache(maxsize=1024)
def _networks(allowed: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network | None, ...]:
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network | None] = []
    for entry in allowed.replace(",", " ").split():
        try:
            networks.append(_network(entry))
        except ValueError:
            networks.append(None)
    return tuple(networks)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address or a network; IPv4 in the form that it has on an IPv6 socket as IPv4. Raises ValueError."""
    network = ipaddress.ip_network(text, strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


def _unmapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address that came over an IPv6 socket, as the IPv4 address that it is."""
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _shut(limit: str) -> RateLimited:
    """The refusal by a limit of 0, which no waiting opens."""
    return RateLimited(
        f"This token has a limit ({limit}) of 0, so no call passes. Ask whoever gave it to you.",
        metadata={"limit": limit, "limit_value": "0"},
    )


def _full(limit: str, most: int, unit: str, window: Window, now: datetime) -> RateLimited:
    if most == 0:
        return _shut(limit)
    resets_at = _end_of(window, now)
    return RateLimited(
        f"This token is for {_many(most, unit)} a minute, and those of this minute are used up."
        f" The next begins at {resets_at:%H:%M} UTC.",
        retry_after=max(0.001, (resets_at - now).total_seconds()),
        metadata={"limit": limit, "limit_value": str(most), "resets_at": to_text(resets_at)},
    )


def _end_of(window: Window, now: datetime) -> datetime:
    start = window.window_start
    return (from_text(start) if start is not None else now.replace(second=0, microsecond=0)) + MINUTE


def _many(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
