"""`gateway explain`: whether a call would be let through now and why, by auth's own decision."""

from __future__ import annotations

from typing import Annotated, Any, Final

from cyclopts import Parameter
from google.protobuf.duration_pb2 import Duration

from clients.cli.connection import DEADLINE, admin_channel, auth_channel
from clients.cli.entries import line_of_stdin
from clients.cli.lookup import tell_request
from clients.cli.output import OK, REFUSED, USAGE, Failure, Json, table, tell, tell_json, warn
from clients.cli.tokens import given_id, id_of
from clients.cli.wire import amount, moment
from gateway.money import CURRENCY, to_json_number
from gateway.stubs.admin.v1.tokens_pb2_grpc import TokenServiceStub
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceStub
from gateway.tokens import PREFIX

_VERDICTS: Final = {
    pb.VERDICT_PASS: "pass",
    pb.VERDICT_REFUSE: "refuse",
    pb.VERDICT_WOULD_REFUSE: "would refuse",
    pb.VERDICT_NOT_COMPUTED: "not computed",
}


def explain(
    *,
    token: Annotated[str, Parameter(help="The token's id, or its name if no other token has it.")] = "",
    token_stdin: Annotated[bool, Parameter(help="Read the token itself from standard input, in place of --token.")] = False,
    model: Annotated[str, Parameter(help="The model, as a caller names it.")] = "",
    max_output_tokens: Annotated[
        int | None, Parameter(help="The output limit that the caller states; none when absent.")
    ] = None,
    input_tokens: Annotated[
        int | None, Parameter(help="An upper bound of the input: its bytes, to be sure; 0 when absent.")
    ] = None,
    client_ip: Annotated[str, Parameter(help="The caller's address; not known when absent.")] = "",
    request: Annotated[str, Parameter(help="Instead: what became of this call, by the x-request-id of its answer.")] = "",
    json: Json = False,
) -> int:
    """Say whether a call would be let through now, rule by rule; or, by its request id, what became of one.

    Example: gateway explain --token app --model gpt-4o --input-tokens 2000 --max-output-tokens 500
    """
    if request:
        if token or token_stdin or model or client_ip or input_tokens is not None or max_output_tokens is not None:
            raise Failure("--request stands alone: the call is known by it", code=USAGE, reason="usage")
        return tell_request(request, as_json=json)
    if bool(token) == token_stdin or not model:
        raise Failure("explain takes --model, and --token or --token-stdin; or --request", code=USAGE, reason="usage")
    try:
        asked = pb.ValidateTokenRequest(
            dry_run=True,
            request_model=model,
            input_token_ceiling=input_tokens or 0,
            max_output_tokens=max_output_tokens,
            client_ip=client_ip,
        )
    except ValueError as fault:
        raise Failure(f"a number is out of range: {fault}", code=USAGE, reason="usage") from None
    if token_stdin:
        asked.token = line_of_stdin()
    elif token.startswith(PREFIX):
        warn("others on this machine can read a token on the command line; --token-stdin reads it from standard input")
        asked.token = token
    else:
        asked.token_id = _id(token)
    with auth_channel() as channel:
        answer = AuthServiceStub(channel).ValidateToken(asked, timeout=DEADLINE)
    if json:
        tell_json(_to_json(model, answer))
    else:
        _show(answer)
    return OK if answer.HasField("grant") else REFUSED


def _id(token: str) -> int:
    number = given_id(token)
    if number is not None:
        return number  # admin need not be there
    with admin_channel() as channel:
        return id_of(TokenServiceStub(channel), token)


def _show(answer: pb.ValidateTokenResponse) -> None:
    rules = [(r.rule, _VERDICTS.get(r.verdict, ""), r.limit, r.value, r.denial.message) for r in answer.explanation.rules]
    table(("rule", "verdict", "limit", "now", "refusal"), rules)
    tell("")
    candidates = [
        (
            c.provider,
            c.model,
            f"price {c.price_id} ({c.price_source})" if c.price_id else "no price",
            f"since {moment(c.price_valid_from)}" if c.HasField("price_valid_from") else "",
            c.rates_json,
            f"holds {amount(c.hold_nanos)}",
        )
        for c in answer.explanation.candidates
    ]
    table(("provider", "model", "price", "from", "rates", "hold"), candidates)
    tell("")
    tell(_verdict(answer))


def _verdict(answer: pb.ValidateTokenResponse) -> str:
    """The last line."""
    at = moment(answer.explanation.at)
    if answer.HasField("grant"):
        grant = answer.grant
        limited = f", output limit {grant.max_output_tokens}" if grant.HasField("max_output_tokens") else ""
        return f"granted at {at}: token {grant.token_id} would hold {amount(grant.held_nanos)} {CURRENCY}{limited}"
    refusing = next((rule.rule for rule in answer.explanation.rules if rule.verdict == pb.VERDICT_REFUSE), "")
    return f"refused at {at} by {refusing}: {answer.denial.message}"


def _to_json(model: str, answer: pb.ValidateTokenResponse) -> dict[str, Any]:
    told = answer.explanation
    granted = answer.HasField("grant")
    return {
        "verdict": "granted" if granted else "refused",
        "at": moment(told.at),
        "token_id": told.token_id or None,
        "model": model,
        "hold": to_json_number(answer.grant.held_nanos) if granted else None,
        "max_output_tokens": answer.grant.max_output_tokens if answer.grant.HasField("max_output_tokens") else None,
        "currency": CURRENCY,
        "refusal": None if granted else _denial_to_json(answer.denial),
        "rules": [
            {
                "rule": rule.rule,
                "verdict": _VERDICTS.get(rule.verdict, "").replace(" ", "_"),
                "limit": rule.limit,
                "now": rule.value,
                "refusal": _denial_to_json(rule.denial) if rule.HasField("denial") else None,
            }
            for rule in told.rules
        ],
        "candidates": [
            {
                "provider": c.provider,
                "model": c.model,
                "price_id": c.price_id or None,
                "price_source": c.price_source or None,
                "price_valid_from": moment(c.price_valid_from) if c.HasField("price_valid_from") else None,
                "rates": c.rates_json or None,
                "context_window": c.context_window if c.HasField("context_window") else None,
                "max_output_tokens": c.max_output_tokens if c.HasField("max_output_tokens") else None,
                "hold": to_json_number(c.hold_nanos),
            }
            for c in told.candidates
        ],
    }


def _denial_to_json(denial: pb.Denial) -> dict[str, Any]:
    return {
        "reason": pb.DenialReason.Name(denial.reason).removeprefix("DENIAL_REASON_").lower(),
        "message": denial.message,
        "limit": denial.limit or None,
        "remaining": to_json_number(denial.remaining_nanos) if denial.HasField("remaining_nanos") else None,
        "held": to_json_number(denial.held_nanos) if denial.HasField("held_nanos") else None,
        "needed": to_json_number(denial.needed_nanos) if denial.HasField("needed_nanos") else None,
        "resets_at": moment(denial.resets_at) if denial.HasField("resets_at") else None,
        "retry_after": _seconds(denial.retry_delay) if denial.HasField("retry_delay") else None,
    }


def _seconds(span: Duration) -> float:
    return span.ToMilliseconds() / 1000
