"""`gateway token adjust` and `adjustments`: corrections of what a token has spent, through admin's AdjustmentService."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from clients.cli.connection import DEADLINE, admin_channel
from clients.cli.entries import reading
from clients.cli.output import USAGE, Failure, Json, fields, table, tell_json, warn
from clients.cli.tokens import Which, id_of
from clients.cli.wire import amount as shown_amount
from clients.cli.wire import moment
from gateway.ids import uuid7
from gateway.money import CURRENCY, signed_nanos, to_json_number
from gateway.stubs.admin.v1 import adjustments_pb2 as pb
from gateway.stubs.admin.v1.adjustments_pb2_grpc import AdjustmentServiceStub
from gateway.stubs.admin.v1.tokens_pb2_grpc import TokenServiceStub


def adjust(
    token: Which,
    *,
    amount: Annotated[
        str, Parameter(help="What to add to the amount spent, in USD; below 0 gives back.", allow_leading_hyphen=True)
    ],
    reason: Annotated[str, Parameter(help="Why, in at most 500 characters; it stays in the books.")],
    request_id: Annotated[str, Parameter(help="A UUID; with the same one the correction is booked once.")] = "",
    json: Json = False,
) -> None:
    """Correct what a token has spent. The costs of its calls stay as they are; the correction stands beside them.

    Example: gateway token adjust app --amount -1.50 --reason 'the answers of 3 March were cut off'
    """
    with reading():
        nanos = signed_nanos(amount)
    with admin_channel() as channel:
        number = id_of(TokenServiceStub(channel), token)
        request = pb.CreateAdjustmentRequest(
            request_id=request_id or uuid7(), token_id=number, amount_nanos=nanos, reason=reason
        )
        answer = AdjustmentServiceStub(channel).CreateAdjustment(request, timeout=DEADLINE)
    booked = answer.adjustment
    if json:
        tell_json(_to_json(booked) | {"amount_spent": to_json_number(answer.amount_spent_nanos)})
        return
    fields(
        {
            "correction": str(booked.id),
            "token": str(booked.token_id),
            "amount": shown_amount(booked.amount_nanos),
            "reason": booked.reason,
            "spent": shown_amount(answer.amount_spent_nanos),
        }
    )


def adjustments(
    token: Which,
    *,
    limit: Annotated[int, Parameter(help="At most so many, from 1 to 1000.")] = 100,
    page_token: Annotated[str, Parameter(help="Go on where the answer before ended.")] = "",
    json: Json = False,
) -> None:
    """List the corrections of a token, the newest first.

    Example: gateway token adjustments app --json
    """
    if not 1 <= limit <= 1000:
        raise Failure("--limit is from 1 to 1000", code=USAGE, reason="usage")
    with admin_channel() as channel:
        number = id_of(TokenServiceStub(channel), token)
        request = pb.ListAdjustmentsRequest(token_id=number, page_size=limit, page_token=page_token)
        answer = AdjustmentServiceStub(channel).ListAdjustments(request, timeout=DEADLINE)
    found = [_to_json(adjustment) for adjustment in answer.adjustments]
    if json:
        tell_json({"adjustments": found, "next_page_token": answer.next_page_token or None})
        return
    rows = [
        (str(one.id), shown["created_at"], shown_amount(one.amount_nanos), one.actor, one.reason)
        for one, shown in zip(answer.adjustments, found, strict=True)
    ]
    table(("id", "at", "amount", "by", "reason"), rows)
    if answer.next_page_token:
        warn(f"there are more: gateway token adjustments {token} --page-token {answer.next_page_token}")


def _to_json(adjustment: pb.Adjustment) -> dict[str, Any]:
    return {
        "id": adjustment.id,
        "token_id": adjustment.token_id,
        "amount": to_json_number(adjustment.amount_nanos),
        "currency": CURRENCY,
        "reason": adjustment.reason,
        "actor": adjustment.actor,
        "created_at": moment(adjustment.created_at),
    }
