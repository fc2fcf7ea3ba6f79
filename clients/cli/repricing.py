"""`gateway reprice`: what settled calls would have cost at another price, and the booking of the difference."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

from cyclopts import Parameter

from clients.cli.host import opened
from clients.cli.output import USAGE, Failure, Json, table, tell, tell_json
from clients.cli.wire import amount
from gateway.clock import SystemClock, parse_expiry
from gateway.money import CURRENCY, to_json_number
from gateway.process.settings import load_settings
from gateway.storage.adjustments import checked_reason
from gateway.storage.audit import OPERATOR, Actor
from gateway.storage.migrate import require_current
from gateway.storage.repricing import Repriced, Repricing, Selection


def reprice(
    *,
    since: Annotated[str, Parameter(help="Calls admitted from this day (its start, UTC) or moment on.")],
    until: Annotated[str, Parameter(help="Calls admitted before this day or moment.")] = "",
    model: Annotated[str, Parameter(help="Only calls that asked for this model.")] = "",
    provider: Annotated[str, Parameter(help="Only calls that this provider served.")] = "",
    token: Annotated[int, Parameter(help="Only this token's calls, by its id.")] = 0,
    price: Annotated[int, Parameter(help="Compute with this price, by its id; with the one that holds now when absent.")] = 0,
    dry_run: Annotated[bool, Parameter(help="Only show what would be booked.")] = False,
    reason: Annotated[str, Parameter(help="Why, as the corrections will say; needed without --dry-run.")] = "",
    json: Json = False,
) -> None:
    """Compute settled calls at another price, and book the difference as corrections.

    Only calls charged by their provider's own usage. A second run books nothing twice. Services may run meanwhile.

    Example: gateway reprice --since 2027-01-01 --model my-model --dry-run
    """
    wanted = Selection(
        since=_start("--since", since),
        until=_start("--until", until) if until else None,
        model=model,
        provider=provider,
        token_id=token,
        price_id=price,
    )
    if not dry_run:
        reason = checked_reason(reason)
    settings = load_settings(os.environ)
    with opened(settings) as db:
        require_current(db)
        work = Repricing(db, SystemClock())
        found = list(work.preview(wanted) if dry_run else work.book(wanted, reason, actor=Actor(OPERATOR)))
    _show(found, dry_run=dry_run, as_json=json)


def _start(option: str, text: str) -> datetime:
    """A moment; a day alone is its start, UTC."""
    try:
        moment = parse_expiry(text)
    except (ValueError, OverflowError) as fault:
        raise Failure(f"{option}: {fault}", code=USAGE, reason="usage") from None
    if len(text.strip()) <= len("2027-01-31"):
        return moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return moment


def _show(found: Iterable[Repriced], *, dry_run: bool, as_json: bool) -> None:
    results = list(found)
    total = sum(result.difference_nanos for result in results)
    if as_json:
        tell_json(
            {
                "dry_run": dry_run,
                "tokens": [_to_json(result) for result in results],
                "difference": to_json_number(total),
                "currency": CURRENCY,
            }
        )
        return
    rows = [
        (
            str(result.token_id),
            str(result.calls),
            amount(result.charged_nanos),
            amount(result.would_cost_nanos),
            amount(result.difference_nanos),
            str(result.left_out),
        )
        for result in results
    ]
    table(("token", "calls", "charged", "at the price", "difference", "left out"), rows)
    calls = sum(result.calls for result in results)
    tell(f"{calls} calls, {amount(total)} {CURRENCY} {'would be' if dry_run else 'was'} added to what their tokens have spent")


def _to_json(result: Repriced) -> dict[str, Any]:
    return {
        "token_id": result.token_id,
        "calls": result.calls,
        "left_out": result.left_out,
        "charged": to_json_number(result.charged_nanos),
        "would_cost": to_json_number(result.would_cost_nanos),
        "difference": to_json_number(result.difference_nanos),
        "adjustment_ids": list(result.adjustment_ids),
    }
