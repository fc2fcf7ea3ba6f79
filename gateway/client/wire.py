"""Between the client's arguments and the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.client.results import Grant, ModelUsage, Price, Receipt, RecentCall, TokenUsage
from gateway.client.terms import CallTerms, UsageTerms, text_ceiling
from gateway.clock import from_text
from gateway.errors import Internal, InvalidArgument
from gateway.ids import is_canonical_uuid
from gateway.pricing import Rates
from gateway.rpc.refusals import refusal_of
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.usage import INPUT, OUTPUT, Outcome, Source, State

_OUTCOMES: Final = {
    Outcome.SETTLED: pb.OUTCOME_SETTLED,
    Outcome.RELEASED: pb.OUTCOME_RELEASED,
    Outcome.SETTLED_AT_HOLD: pb.OUTCOME_SETTLED_AT_HOLD,
}
_SOURCES: Final = {
    Source.PROVIDER: pb.USAGE_SOURCE_PROVIDER,
    Source.COUNTED: pb.USAGE_SOURCE_COUNTED,
    Source.ESTIMATED: pb.USAGE_SOURCE_ESTIMATED,
    Source.NONE: pb.USAGE_SOURCE_NONE,
}
# Fields of a validation that go out under their own name.
_AS_THEY_ARE: Final = (
    "max_output_tokens",
    "choices",
    "thinking_budget_tokens",
    "endpoint",
    "dialect",
    "stream",
    "client_ip",
    "user_agent",
    "parent_request_id",
    "input_unbounded",
    "unbounded_features",
    "units",
)
_M = TypeVar("_M")
_OF_A_REPORT: Final = ("response_model", "status", "error_code", "usage_json", "ttft_ms", "duration_ms", "token_id")


def validation(token: str, request_id: str, model: str, terms: CallTerms) -> pb.ValidateTokenRequest:
    """The question whether a call may be made. Raises InvalidArgument where the input has no bound, or a field is wrong."""
    if request_id and not is_canonical_uuid(request_id):
        raise InvalidArgument("request_id is a UUID in lower case, such as gateway.ids.uuid7() makes")
    if "input_tokens" not in terms and "input_text" not in terms:
        raise InvalidArgument("say how much the call may read: input_tokens=… or input_text=… (0 if it reads nothing)")
    values: dict[str, Any] = {name: terms[name] for name in _AS_THEY_ARE if name in terms}
    candidates = [pb.Candidate(provider=provider, model=name) for provider, name in terms.get("candidates", ())]
    ceiling = terms.get("input_tokens", 0) + (text_ceiling(terms["input_text"]) if "input_text" in terms else 0)
    return _made(
        pb.ValidateTokenRequest,
        token=token,
        request_id=request_id,
        request_model=model,
        candidates=candidates,
        input_token_ceiling=ceiling,
        fixed_usage=_items(terms.get("fixed_usage", {})),
        **values,
    )


def look(token: str, model: str, client_ip: str) -> pb.ValidateTokenRequest:
    """The question whether a token is good, which holds nothing."""
    return _made(pb.ValidateTokenRequest, token=token, request_model=model, client_ip=client_ip)


def grant(answer: pb.ValidateTokenResponse, request_id: str) -> Grant:
    """The grant in an answer. Raises the Refusal in its place."""
    given = granted(answer)
    return Grant(
        request_id=request_id,
        token_id=given.token_id,
        max_output_tokens=given.max_output_tokens if given.HasField("max_output_tokens") else None,
        held_nanos=given.held_nanos,
        prices=tuple(_price(price) for price in given.prices),
        lease=given.lease.ToMilliseconds() / 1000,
    )


def granted(answer: pb.ValidateTokenResponse) -> pb.Grant:
    """The yes in an answer. Raises the Refusal in its place, Internal for neither."""
    match answer.WhichOneof("result"):
        case "grant":
            return answer.grant
        case "denial":
            raise refusal_of(answer.denial)
        case _:
            raise Internal("auth answered neither yes nor no")


def report(call: Grant | str, terms: UsageTerms) -> pb.RecordUsageRequest:
    """How a call ended, as auth takes it. Raises InvalidArgument."""
    request_id = call if isinstance(call, str) else call.request_id
    if not is_canonical_uuid(request_id):
        raise InvalidArgument("a report names its call by the grant, or by the request_id that it was admitted with")
    outcome = terms.get("outcome", Outcome.SETTLED)
    usage = dict(terms.get("usage", {}))
    for unit, name in ((INPUT, "input_tokens"), (OUTPUT, "output_tokens")):
        if name in terms:
            usage[unit] = terms[name]  # type: ignore[literal-required] # one of two keys of UsageTerms
    if outcome is Outcome.SETTLED and not usage:
        raise InvalidArgument("say what was used: input_tokens=…, output_tokens=… or usage={…}; or an outcome without usage")
    if outcome is not Outcome.SETTLED and usage:
        raise InvalidArgument(f"the outcome {outcome} takes no usage")
    source = terms.get("source", Source.COUNTED if outcome is Outcome.SETTLED else Source.NONE)
    values: dict[str, Any] = {name: terms[name] for name in _OF_A_REPORT if name in terms}
    served = terms.get("served")
    message = _made(
        pb.RecordUsageRequest,
        request_id=request_id,
        outcome=_OUTCOMES[outcome],
        source=_SOURCES[source],
        usage=_items(usage),
        **values,
    )
    if served is not None:
        message.served.CopyFrom(pb.Candidate(provider=served[0], model=served[1]))
    return message


def withdrawal(request_id: str) -> pb.RecordUsageRequest:
    """That a call will not be made."""
    return report(request_id, {"outcome": Outcome.RELEASED, "error_code": "not_sent"})


def receipt(request_id: str, answer: pb.RecordUsageResponse) -> Receipt:
    """That a report is booked."""
    remaining = answer.remaining_nanos if answer.HasField("remaining_nanos") else None
    return Receipt(request_id, True, State(answer.state), answer.cost_nanos, remaining)


def token_usage(answer: pb.GetTokenUsageResponse) -> TokenUsage:
    """A token's books."""
    return TokenUsage(
        token_id=answer.token_id,
        status=answer.status,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        total_tokens=answer.total_tokens,
        amount_spent_nanos=answer.amount_spent_nanos,
        max_amount_nanos=answer.max_amount_nanos if answer.HasField("max_amount_nanos") else None,
        remaining_nanos=answer.remaining_nanos if answer.HasField("remaining_nanos") else None,
        held_nanos=answer.held_nanos,
        resets_at=from_text(_text(answer.resets_at)) if answer.HasField("resets_at") else None,
        models=tuple(ModelUsage(m.model, m.requests, m.total_tokens, m.amount_spent_nanos) for m in answer.models),
        recent=tuple(
            RecentCall(call.request_id, from_text(_text(call.at)), call.model, call.tokens, call.amount_nanos, call.status)
            for call in answer.recent
        ),
    )


def ids(calls: Iterable[Grant | str]) -> list[str]:
    """The request ids of calls."""
    return [call if isinstance(call, str) else call.request_id for call in calls]


def _price(price: pb.CandidatePrice) -> Price:
    rates = Rates.from_json(price.rates_json) if price.rates_json else None
    return Price(price.provider, price.model, price.price_id, rates)


def _items(usage: Any) -> list[pb.UsageItem]:
    return [_made(pb.UsageItem, unit=unit, count=count) for unit, count in sorted(usage.items())]


def _text(moment: Timestamp) -> str:
    return moment.ToJsonString()


def _made(kind: Callable[..., _M], **values: Any) -> _M:
    """A message. Raises InvalidArgument for a value that the field cannot hold."""
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"a value does not fit: {error}") from None
