"""Between the wire and the domain, as auth reads and writes it; for the service in memory."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from gateway.quota import Call, PricedCandidate
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.usage import Outcome, Report, Source


def call_of(request: pb.ValidateTokenRequest) -> Call:
    """What wants to be done."""
    return Call(
        request_model=request.request_model,
        input_token_ceiling=request.input_token_ceiling,
        max_output_tokens=request.max_output_tokens if request.HasField("max_output_tokens") else None,
        choices=request.choices or 1,
        thinking_budget_tokens=request.thinking_budget_tokens,
        input_unbounded=request.input_unbounded,
        unbounded_features=tuple(request.unbounded_features),
        units=tuple(request.units),
        fixed_usage={item.unit: item.count for item in request.fixed_usage},
        client_ip=request.client_ip,
    )


def report_of(message: pb.RecordUsageRequest, identity: str) -> Report:
    """How a call ended."""
    return Report(
        request_id=message.request_id,
        outcome=Outcome[pb.Outcome.Name(message.outcome).removeprefix("OUTCOME_")],
        identity=identity,
        provider=message.served.provider,
        model=message.served.model,
        response_model=message.response_model,
        usage={item.unit: item.count for item in message.usage},
        source=Source[pb.UsageSource.Name(message.source).removeprefix("USAGE_SOURCE_")],
        status=message.status,
        error_code=message.error_code,
        usage_json=message.usage_json,
        ttft_ms=message.ttft_ms,
        duration_ms=message.duration_ms,
        token_id=message.token_id,
    )


def grant_message(
    token_id: int, held_nanos: int, max_output_tokens: int | None, candidates: Sequence[PricedCandidate], lease: float
) -> pb.Grant:
    """A yes."""
    return pb.Grant(
        token_id=token_id,
        max_output_tokens=max_output_tokens,
        held_nanos=held_nanos,
        prices=[
            pb.CandidatePrice(
                provider=candidate.provider,
                model=candidate.model,
                price_id=candidate.price_id,
                rates_json=candidate.rates.to_json() if candidate.rates is not None else "",
            )
            for candidate in candidates
        ],
        lease=Duration(seconds=int(lease)),
    )
