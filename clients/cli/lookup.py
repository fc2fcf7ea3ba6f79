"""What became of one call, by the id of its answer: a row of the request log, or a refusal."""

from __future__ import annotations

from typing import Any

from clients.cli.connection import DEADLINE, admin_channel
from clients.cli.output import OK, fields, tell_json
from clients.cli.wire import amount, moment
from gateway.money import CURRENCY, to_json_number
from gateway.stubs.admin.v1 import requests_pb2 as pb
from gateway.stubs.admin.v1.requests_pb2_grpc import RequestLogServiceStub


def tell_request(request_id: str, *, as_json: bool) -> int:
    """Prints it and gives the exit code, which is 0 for a refusal too: it was found. Raises NotFound, Failure."""
    with admin_channel() as channel:
        message = pb.GetRequestRequest(request_id=request_id.strip())
        answer = RequestLogServiceStub(channel).GetRequest(message, timeout=DEADLINE)
    refused = answer.HasField("refusal")
    if as_json:
        tell_json(_refusal_to_json(answer.refusal) if refused else _call_to_json(answer.request))
    else:
        fields(_refusal_to_fields(answer.refusal) if refused else _call_to_fields(answer.request))
    return OK


def _refusal_to_fields(refusal: pb.RefusalRecord) -> dict[str, str]:
    token = f"{refusal.token_id} ({refusal.token_name})" if refusal.token_id else "unknown"
    money = {
        "left": amount(refusal.remaining_nanos) if refusal.HasField("remaining_nanos") else "",
        "held": amount(refusal.held_nanos) if refusal.HasField("held_nanos") else "",
        "needed": amount(refusal.needed_nanos) if refusal.HasField("needed_nanos") else "",
    }
    limit = refusal.limit
    if refusal.HasField("limit_value"):
        limit = f"{limit} ({refusal.limit_value})"
    shown = {
        "refused at": moment(refusal.refused_at),
        "token": token,
        "model": refusal.request_model,
        "endpoint": refusal.endpoint,
        "address": refusal.client_ip,
        "reason": refusal.reason.lower(),
        "message": refusal.message,
        "limit": limit,
        **money,
        "starts anew": moment(refusal.resets_at) if refusal.HasField("resets_at") else "",
    }
    return {"request": refusal.request_id} | {name: text for name, text in shown.items() if text}


def _call_to_fields(call: pb.RequestRecord) -> dict[str, str]:
    shown = {
        "admitted at": moment(call.admitted_at),
        "token": f"{call.token_id} ({call.token_name})",
        "model": call.request_model,
        "provider": call.provider,
        "state": call.state,
        "status": str(call.status or ""),
        "error": call.error_code,
        "tokens": f"{call.input_tokens} read, {call.output_tokens} written",
        "cost": f"{amount(call.cost_nanos)} {CURRENCY}" + (f" ({call.usage_source})" if call.usage_source else ""),
        "held": f"{amount(call.held_nanos)} {CURRENCY}",
        "price": str(call.price_id or ""),
    }
    return {"request": call.request_id} | {name: text for name, text in shown.items() if text}


def _refusal_to_json(refusal: pb.RefusalRecord) -> dict[str, Any]:
    return {
        "request_id": refusal.request_id,
        "state": "refused",
        "at": moment(refusal.refused_at),
        "token_id": refusal.token_id or None,
        "token_name": refusal.token_name or None,
        "model": refusal.request_model or None,
        "endpoint": refusal.endpoint or None,
        "client_ip": refusal.client_ip or None,
        "reason": refusal.reason.lower(),
        "message": refusal.message,
        "limit": refusal.limit or None,
        "limit_value": refusal.limit_value if refusal.HasField("limit_value") else None,
        "remaining": to_json_number(refusal.remaining_nanos) if refusal.HasField("remaining_nanos") else None,
        "held": to_json_number(refusal.held_nanos) if refusal.HasField("held_nanos") else None,
        "needed": to_json_number(refusal.needed_nanos) if refusal.HasField("needed_nanos") else None,
        "resets_at": moment(refusal.resets_at) if refusal.HasField("resets_at") else None,
    }


def _call_to_json(call: pb.RequestRecord) -> dict[str, Any]:
    return {
        "request_id": call.request_id,
        "state": call.state,
        "at": moment(call.admitted_at),
        "settled_at": moment(call.settled_at) if call.HasField("settled_at") else None,
        "token_id": call.token_id,
        "token_name": call.token_name,
        "model": call.request_model,
        "provider": call.provider or None,
        "endpoint": call.endpoint or None,
        "client_ip": call.client_ip or None,
        "status": call.status or None,
        "error_code": call.error_code or None,
        "input_tokens": call.input_tokens,
        "output_tokens": call.output_tokens,
        "amount": to_json_number(call.cost_nanos),
        "held": to_json_number(call.held_nanos),
        "source": call.usage_source or None,
        "price_id": call.price_id or None,
    }
