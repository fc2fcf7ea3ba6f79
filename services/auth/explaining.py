"""Dry runs between the wire and the domain: what may be asked, and how an explanation is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from gateway.admission import Admission, Explained, PriceOrigin
from gateway.clock import from_text
from gateway.errors import InvalidArgument
from gateway.explain import Judged, Verdict
from gateway.quota import PricedCandidate
from gateway.rpc.refusals import denial_of
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.auth import wire

_VERDICTS: Final[Mapping[Verdict, pb.Verdict.ValueType]] = {
    Verdict.PASS: pb.VERDICT_PASS,
    Verdict.REFUSE: pb.VERDICT_REFUSE,
    Verdict.WOULD_REFUSE: pb.VERDICT_WOULD_REFUSE,
    Verdict.NOT_COMPUTED: pb.VERDICT_NOT_COMPUTED,
}


def dry_run_from_proto(message: pb.ValidateTokenRequest, *, key: bytes, identity: str) -> Admission:
    """A dry run as the ledger takes it. Raises InvalidArgument with the field and what it takes."""
    if message.request_id:
        raise InvalidArgument("request_id is for a call that is made; a dry_run has none")
    if message.look_id:
        raise InvalidArgument("look_id is for a look; of a dry_run no refusal is kept")
    if not message.request_model:
        raise InvalidArgument("request_model is needed with dry_run")
    if message.token_id < 0:
        raise InvalidArgument("token_id is 1 or more")
    if bool(message.token) == bool(message.token_id):
        raise InvalidArgument("token or token_id: a dry_run takes one of them")
    plain = pb.ValidateTokenRequest()
    plain.CopyFrom(message)
    plain.ClearField("dry_run")
    plain.ClearField("token_id")
    admission = wire.admission_from_proto(plain, key=key, identity=identity)
    return replace(admission, token_id=message.token_id, token_hash="") if message.token_id else admission


def explained_to_proto(explained: Explained, *, by_proxy: bool) -> pb.ValidateTokenResponse:
    """The decision with its explanation. Raises what is neither grant nor denial: a fault."""
    response = wire.validation_to_proto(explained.answer, by_proxy=by_proxy)
    told = explained.explanation
    response.explanation.CopyFrom(
        pb.Explanation(
            at=wire.timestamp(explained.at),
            token_id=explained.token_id,
            rules=[_rule(judged) for judged in told.rules],
            candidates=[
                _candidate(candidate, origin, hold)
                for candidate, origin, hold in zip(explained.candidates, explained.origins, told.holds, strict=True)
            ],
        )
    )
    return response


def _rule(judged: Judged) -> pb.RuleVerdict:
    return pb.RuleVerdict(
        rule=judged.rule,
        verdict=_VERDICTS[judged.verdict],
        limit=judged.limit,
        value=judged.value,
        denial=None if judged.refusal is None else denial_of(judged.refusal),
    )


def _candidate(candidate: PricedCandidate, origin: PriceOrigin | None, hold: int) -> pb.CandidateExplanation:
    return pb.CandidateExplanation(
        provider=candidate.provider,
        model=candidate.model,
        price_id=candidate.price_id,
        price_source="" if origin is None else origin.source,
        price_valid_from=wire.timestamp(from_text(origin.valid_from)) if origin is not None and origin.valid_from else None,
        rates_json="" if candidate.rates is None else candidate.rates.to_json(),
        context_window=candidate.context_window,
        max_output_tokens=candidate.max_output_tokens,
        hold_nanos=hold,
    )
