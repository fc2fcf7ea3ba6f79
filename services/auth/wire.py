"""Between the wire and the domain: what a message must be like, and what it means."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.admission import Admission, Admitted, Settled
from gateway.clock import from_text
from gateway.errors import GatewayError, InvalidArgument, Refusal
from gateway.ids import is_canonical_uuid
from gateway.limits import RateLimit
from gateway.quota import Call
from gateway.rpc.identity import Caller
from gateway.rpc.refusals import denial_of
from gateway.rpc.status import code_of
from gateway.storage.ledger import MOST_OPEN
from gateway.storage.token_usage import Call as RecentCall
from gateway.storage.token_usage import ModelTotals
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.tokens import hash_secret
from gateway.usage import UNITS, Outcome, Report, Source

PROXY_LEASE_SECONDS: Final = 60
SERVICE_LEASE_SECONDS: Final = 600
OPEN_FOR_LONG_SECONDS: Final = 30  # a call that its proxy does not know by then is none that is just being answered
_MAX_TOKENS: Final = 1_000_000_000
_MAX_LIMIT: Final = 1_000_000_000_000
_MAX_SECRET: Final = 4_096

_OUTCOMES: Final = {
    pb.OUTCOME_RELEASED: Outcome.RELEASED,
    pb.OUTCOME_SETTLED: Outcome.SETTLED,
    pb.OUTCOME_SETTLED_AT_HOLD: Outcome.SETTLED_AT_HOLD,
}
_SOURCES: Final = {
    pb.USAGE_SOURCE_UNSPECIFIED: Source.NONE,
    pb.USAGE_SOURCE_PROVIDER: Source.PROVIDER,
    pb.USAGE_SOURCE_COUNTED: Source.COUNTED,
    pb.USAGE_SOURCE_ESTIMATED: Source.ESTIMATED,
    pb.USAGE_SOURCE_NONE: Source.NONE,
}


def secret_hash(key: bytes, secret: str) -> str:
    """Hex of a presented secret's hash. One that is too long to be any token hashes to nothing that is stored."""
    return hash_secret(key, secret).hex() if len(secret) <= _MAX_SECRET else ""


def admission_from_proto(message: pb.ValidateTokenRequest, *, key: bytes, identity: str) -> Admission:
    """A validation as the ledger takes it. Raises InvalidArgument with the field and what it takes."""
    request_id = message.request_id
    if request_id:
        _uuid("request_id", request_id)
    if message.parent_request_id:
        _uuid("parent_request_id", message.parent_request_id)
    if message.proxy_id:
        _uuid("proxy_id", message.proxy_id)
    _text("endpoint", message.endpoint, 200)
    _text("dialect", message.dialect, 40)
    _text("request_model", message.request_model, 256)
    _text("client_ip", message.client_ip, 64)
    _number("input_token_ceiling", message.input_token_ceiling, 0, _MAX_TOKENS)
    _number("choices", message.choices, 0, 128)
    _number("thinking_budget_tokens", message.thinking_budget_tokens, 0, _MAX_TOKENS)
    stated = message.max_output_tokens if message.HasField("max_output_tokens") else None
    if stated is not None:
        _number("max_output_tokens", stated, 1, _MAX_LIMIT)
    _most("candidates", message.candidates, 16)
    _most("unbounded_features", message.unbounded_features, 16)
    _most("units", message.units, 16)
    if message.look_id:
        _uuid("look_id", message.look_id)
        if request_id:
            raise InvalidArgument("look_id is for a look; a call that is made is known by its request_id")
    if message.dry_run or message.token_id:
        raise InvalidArgument("dry_run and token_id are for ValidateToken alone, token_id with dry_run")
    if request_id and not message.request_model:
        raise InvalidArgument("request_model is needed with a request_id")
    if unknown := [unit for unit in message.units if unit not in UNITS]:
        raise InvalidArgument(f"units has {unknown[0]!r}, which is none of {', '.join(sorted(UNITS))}")
    fixed_usage = _counts("fixed_usage", message.fixed_usage, 16)
    if any(not 0 <= count <= _MAX_TOKENS for count in fixed_usage.values()):
        raise InvalidArgument(f"fixed_usage takes counts of 0 to {_MAX_TOKENS}")
    for candidate in message.candidates:
        _text("candidates", candidate.provider, 256)
        _text("candidates", candidate.model, 256)
    candidates = tuple((candidate.provider, candidate.model) for candidate in message.candidates)
    call = Call(
        request_model=message.request_model,
        input_token_ceiling=message.input_token_ceiling,
        max_output_tokens=stated,
        choices=message.choices or 1,
        thinking_budget_tokens=message.thinking_budget_tokens,
        input_unbounded=message.input_unbounded,
        unbounded_features=tuple(message.unbounded_features),
        units=tuple(message.units),
        fixed_usage=fixed_usage,
        client_ip=message.client_ip,
    )
    return Admission(
        token_hash=secret_hash(key, message.token),
        call=call,
        identity=identity,
        request_id=request_id,
        candidates=candidates or (("", message.request_model),),
        parent_request_id=message.parent_request_id,
        endpoint=message.endpoint,
        dialect=message.dialect,
        stream=message.stream,
        client_ip=message.client_ip,
        user_agent=message.user_agent[:200].replace("\0", ""),
        proxy_id=message.proxy_id,
        look_id=message.look_id,
        # Keyed, because the message holds the secret and a plain digest of a short one could be guessed.
        digest=hmac.digest(key, message.SerializeToString(deterministic=True), "sha256").hex()[:32] if request_id else "",
    )


def report_from_proto(message: pb.RecordUsageRequest, *, caller: Caller) -> Report:
    """A settlement as the ledger takes it. Raises InvalidArgument with the field and what it takes.

    Counts are taken as they are: what is implausible is charged at the hold, not refused, so that no call stays open.
    """
    _uuid("request_id", message.request_id)
    if message.outcome not in _OUTCOMES:
        raise InvalidArgument("outcome is RELEASED, SETTLED or SETTLED_AT_HOLD")
    if message.source not in _SOURCES:
        raise InvalidArgument("source is PROVIDER, COUNTED, ESTIMATED or NONE")
    _number("status", message.status, 0, 599)
    _number("token_id", message.token_id, 0, 2**63 - 1)
    return Report(
        request_id=message.request_id,
        outcome=_OUTCOMES[message.outcome],
        identity=caller.name,
        provider=_told("served.provider", message.served.provider, 256),
        model=_told("served.model", message.served.model, 256),
        response_model=_told("response_model", message.response_model, 256),
        usage=_counts("usage", message.usage, 32),
        source=_SOURCES[message.source],
        status=message.status,
        error_code=_told("error_code", message.error_code, 64),
        usage_json=_told("usage_json", message.usage_json, 4_096),
        attempts_json=_told("attempts_json", message.attempts_json, 4_096),
        ttft_ms=max(0, message.ttft_ms),
        duration_ms=max(0, message.duration_ms),
        token_id=message.token_id,
        may_record_unadmitted="record_unadmitted" in caller.rights,
    )


def check_beat(message: pb.BeatRequest) -> None:
    """Raises InvalidArgument unless this is a proxy process."""
    _uuid("proxy_id", message.proxy_id)
    _text("host", message.host, 200)
    _most("disowned_request_ids", message.disowned_request_ids, MOST_OPEN)


def check_unsent(message: pb.ReleaseUnsentRequest) -> None:
    """Raises InvalidArgument unless this names a proxy process and not too many calls."""
    _uuid("proxy_id", message.proxy_id)
    _most("sent_request_ids", message.sent_request_ids, 10_000)


def not_sent(request_id: str, identity: str) -> Report:
    """The report on a call that was admitted and never made."""
    return Report(request_id, Outcome.RELEASED, identity, error_code="not_sent")


def validation_to_proto(answer: Admitted | GatewayError, *, by_proxy: bool) -> pb.ValidateTokenResponse:
    """A grant or a denial. Raises what is neither: a fault."""
    if isinstance(answer, Admitted):
        return pb.ValidateTokenResponse(grant=_grant(answer, by_proxy=by_proxy))
    if isinstance(answer, Refusal):
        return pb.ValidateTokenResponse(denial=denial_of(answer))
    raise answer


def settled_to_proto(answer: Settled | GatewayError) -> pb.RecordUsageResponse:
    """What a report did. Raises what it could not do."""
    if isinstance(answer, GatewayError):
        raise answer
    response = pb.RecordUsageResponse(cost_nanos=answer.cost_nanos, state=answer.state)
    if answer.remaining_nanos is not None:
        response.remaining_nanos = answer.remaining_nanos
    return response


def item_error(error: GatewayError) -> pb.ItemError:
    """An item's fault inside a batch."""
    return pb.ItemError(code=code_of(error).value[0], reason=error.reason, message=error.message)


def models_to_proto(totals: Iterable[ModelTotals]) -> list[pb.ModelUsage]:
    """A token's totals by model."""
    return [
        pb.ModelUsage(model=t.model, requests=t.requests, total_tokens=t.total_tokens, amount_spent_nanos=t.amount_nanos)
        for t in totals
    ]


def recent_to_proto(calls: Iterable[RecentCall]) -> list[pb.RecentCall]:
    """A token's last calls."""
    return [
        pb.RecentCall(
            request_id=call.request_id,
            at=timestamp(from_text(call.admitted_at)),
            model=call.model,
            tokens=call.tokens,
            amount_nanos=call.amount_nanos,
            status=call.state,
        )
        for call in calls
    ]


def timestamp(moment: datetime) -> Timestamp:
    """A moment on the wire."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def maybe_timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment on the wire, or its absence."""
    return None if moment is None else timestamp(moment)


def rate_limits_to_proto(limits: Iterable[RateLimit]) -> list[pb.RateLimit]:
    """Limits a minute."""
    return [
        pb.RateLimit(name=limit.name, limit=limit.limit, remaining=limit.remaining, resets_at=timestamp(limit.resets_at))
        for limit in limits
    ]


def lease(seconds: int) -> Duration:
    """A span of whole seconds on the wire."""
    return Duration(seconds=seconds)


def _grant(answer: Admitted, *, by_proxy: bool) -> pb.Grant:
    return pb.Grant(
        token_id=answer.token_id,
        max_output_tokens=answer.max_output_tokens,
        held_nanos=answer.held_nanos,
        prices=[
            pb.CandidatePrice(
                provider=candidate.provider,
                model=candidate.model,
                price_id=candidate.price_id,
                rates_json=candidate.rates.to_json() if candidate.rates is not None else "",
            )
            for candidate in answer.candidates
        ],
        lease=lease(PROXY_LEASE_SECONDS if by_proxy else SERVICE_LEASE_SECONDS),
        rate_limits=rate_limits_to_proto(answer.rate_limits),
    )


def _counts(field: str, items: Iterable[pb.UsageItem], most: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        if item.unit in counts:
            raise InvalidArgument(f"{field} names {item.unit!r} twice")
        counts[item.unit] = item.count
    if len(counts) > most:
        raise InvalidArgument(f"{field} takes at most {most} units")
    return counts


def _uuid(field: str, value: str) -> None:
    if not is_canonical_uuid(value):
        raise InvalidArgument(f"{field} is a UUID in lower case, such as 0193e2c4-7b1a-7c3d-9f00-1a2b3c4d5e6f")


def _text(field: str, value: str, most: int) -> None:
    if len(value) > most:
        raise InvalidArgument(f"{field} has at most {most} characters")
    if "\0" in value:  # SQLite would keep it, PostgreSQL cannot
        raise InvalidArgument(f"{field} has a zero byte in it")


def _told(field: str, value: str, most: int) -> str:
    """A text of a report, which came from a provider: a zero byte in it must not keep the call from being charged."""
    value = value.replace("\0", "\ufffd")
    _text(field, value, most)
    return value


def _number(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidArgument(f"{field} is {least} to {most}")


def _most(field: str, values: object, most: int) -> None:
    if len(values) > most:  # type: ignore[arg-type] # a repeated field has a length
        raise InvalidArgument(f"{field} takes at most {most} items")
