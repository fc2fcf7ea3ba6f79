"""The RPCs of `AuthService`: wire to domain, one call to the ledger, domain to wire."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import grpc

from gateway.admission import Admission, Admitted, Settled
from gateway.clock import Clock, to_text
from gateway.errors import BudgetExhausted, GatewayError, Internal, InvalidArgument, Refusal, TokenUnknown
from gateway.limits import check_address, period_end, rate_limits
from gateway.patterns import matches, models_of_text
from gateway.quota import Call, judge, status
from gateway.rpc.access import principal
from gateway.rpc.refusals import denial_of
from gateway.storage import token_usage
from gateway.storage.database import Database
from gateway.storage.ledger import COMMIT_TIMEOUT, Ledger
from gateway.storage.prices import PriceBook
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.stubs.auth.v1 import auth_pb2_grpc
from gateway.usage import Report
from services.auth import wire
from services.auth.access import BY_TOKEN_ID, check_dry_run
from services.auth.decisions import Decisions
from services.auth.explaining import dry_run_from_proto, explained_to_proto
from services.auth.routing import candidates, routing_text

_MAX_VALIDATIONS: Final = 64
_MAX_SETTLEMENTS: Final = 256
_MAX_PROVIDERS: Final = 100
_MAX_NAMES: Final = 1_000


class AuthServicer(auth_pb2_grpc.AuthServiceServicer):
    """Answers the proxy and internal services. Holds nothing that another replica would need."""

    def __init__(self, *, db: Database, ledger: Ledger, decisions: Decisions, token_key: bytes, clock: Clock) -> None:
        self._db = db
        self._ledger = ledger
        self._decisions = decisions
        self._token_key = token_key
        self._clock = clock
        self._names = PriceBook(db, clock)
        self._names_lock = threading.Lock()

    def ValidateToken(self, request: pb.ValidateTokenRequest, context: grpc.ServicerContext) -> pb.ValidateTokenResponse:
        """Decides one call, or explains how it would be decided. A denial is an answer, not an error."""
        name = principal().caller.name
        check_dry_run(name, dry_run=request.dry_run, by_id=bool(request.token_id))
        if request.dry_run:
            if name in BY_TOKEN_ID and request.request_model and not request.candidates:
                request.candidates.extend(candidates(self._db, request.request_model))
            asked = dry_run_from_proto(request, key=self._token_key, identity=name)
            return explained_to_proto(self._ledger.explain(asked, timeout=_time_left(context)), by_proxy=bool(request.proxy_id))
        admission = self._admission(request)
        (answer,) = self._decisions.commit([], [admission], timeout=_time_left(context)).admissions
        return wire.validation_to_proto(answer, by_proxy=bool(request.proxy_id))

    def RecordUsage(self, request: pb.RecordUsageRequest, context: grpc.ServicerContext) -> pb.RecordUsageResponse:
        """Settles one call."""
        report = wire.report_from_proto(request, caller=principal().caller)
        (answer,) = self._decisions.commit([report], [], timeout=_time_left(context)).settlements
        return wire.settled_to_proto(answer)

    def BatchValidateTokens(
        self, request: pb.BatchValidateTokensRequest, context: grpc.ServicerContext
    ) -> pb.BatchValidateTokensResponse:
        """Settles what is reported, then decides each call that waits, in one transaction."""
        _at_most("settlements", len(request.settlements), _MAX_SETTLEMENTS)
        _at_most("validations", len(request.validations), _MAX_VALIDATIONS)
        reports = _each(self._report, request.settlements)
        admissions = _each(self._admission, request.validations)
        outcome = self._decisions.commit(
            [report for report in reports if isinstance(report, Report)],
            [admission for admission in admissions if isinstance(admission, Admission)],
            timeout=_time_left(context),
        )
        settled, decided = iter(outcome.settlements), iter(outcome.admissions)
        return pb.BatchValidateTokensResponse(
            settlements=[_settlement_result(r if isinstance(r, GatewayError) else next(settled)) for r in reports],
            validations=[
                _validation_result(a if isinstance(a, GatewayError) else next(decided), by_proxy=bool(message.proxy_id))
                for a, message in zip(admissions, request.validations, strict=True)
            ],
        )

    def BatchRecordUsage(
        self, request: pb.BatchRecordUsageRequest, context: grpc.ServicerContext
    ) -> pb.BatchRecordUsageResponse:
        """Settles many calls in one transaction."""
        _at_most("settlements", len(request.settlements), _MAX_SETTLEMENTS)
        reports = _each(self._report, request.settlements)
        good = [report for report in reports if isinstance(report, Report)]
        settled = iter(self._decisions.commit(good, [], timeout=_time_left(context)).settlements)
        return pb.BatchRecordUsageResponse(
            settlements=[_settlement_result(r if isinstance(r, GatewayError) else next(settled)) for r in reports]
        )

    def GetTokenUsage(self, request: pb.GetTokenUsageRequest, context: grpc.ServicerContext) -> pb.GetTokenUsageResponse:
        """A token's books, for its holder; also of one that may make no calls."""
        now = self._clock.now()
        books = self._books(request.token, now)
        state = books.state
        if (elsewhere := check_address(state.allowed_ips, request.client_ip)) is not None:
            raise elsewhere
        maximum = state.max_amount_nanos
        details = request.details
        return pb.GetTokenUsageResponse(
            token_id=state.id,
            status=status(state, now),
            prompt_tokens=books.prompt_tokens,
            completion_tokens=books.completion_tokens,
            total_tokens=books.total_tokens,
            amount_spent_nanos=state.period_spent_nanos,
            max_amount_nanos=maximum,
            remaining_nanos=None if maximum is None else maximum - state.period_spent_nanos,
            held_nanos=state.held_nanos,
            resets_at=wire.maybe_timestamp(period_end(state.budget_period, now)),
            budget_period=state.budget_period,
            rate_limits=wire.rate_limits_to_proto(rate_limits(state.window, now)),
            max_parallel_requests=state.window.max_parallel_requests,
            open_calls=state.window.open_calls,
            models=wire.models_to_proto(token_usage.by_model(self._db, state.id)) if details else [],
            recent=wire.recent_to_proto(token_usage.recent(self._db, state.id)) if details else [],
        )

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        """The names that a token may use, out of what the gateway serves. An exhausted token may still read them."""
        _at_most("providers", len(request.providers), _MAX_PROVIDERS)
        _at_most("names", len(request.names), _MAX_NAMES)
        now = self._clock.now()
        try:
            state = self._books(request.token, now).state
        except TokenUnknown as unknown:
            return pb.ListModelsResponse(denial=denial_of(unknown))
        refusal = judge(state, Call("", client_ip=request.client_ip), now)
        if refusal is not None and not isinstance(refusal, BudgetExhausted):
            return pb.ListModelsResponse(denial=denial_of(refusal))
        served: dict[str, str] = dict.fromkeys(request.names, "gateway")
        with self._names_lock:
            self._names.refresh()
            for provider in request.providers:
                _at_most("patterns", len(provider.patterns), _MAX_NAMES)
                for name in self._names.models(provider.provider, provider.patterns):
                    served.setdefault(name, provider.provider)
        allowed = models_of_text(state.allowed_models)
        models = [pb.Model(name=name, provider=served[name]) for name in sorted(served) if matches(name, allowed)]
        return pb.ListModelsResponse(models=models)

    def Beat(self, request: pb.BeatRequest, context: grpc.ServicerContext) -> pb.BeatResponse:
        """A sign of life of a proxy process."""
        wire.check_beat(request)
        disowned = list(request.disowned_request_ids)
        self._ledger.beat(request.proxy_id, request.host, routing_text(request))
        if disowned and (ended := self._ledger.expire(request_ids=self._ledger.open_calls(request.proxy_id, among=disowned))):
            self._decisions.disowned(request.proxy_id, ended)
        since = to_text(self._clock.now() - timedelta(seconds=wire.OPEN_FOR_LONG_SECONDS))
        return pb.BeatResponse(open_request_ids=self._ledger.open_calls(request.proxy_id, admitted_before=since))

    def ReleaseUnsent(self, request: pb.ReleaseUnsentRequest, context: grpc.ServicerContext) -> pb.ReleaseUnsentResponse:
        """Releases what a dead proxy process had admitted and never sent."""
        wire.check_unsent(request)
        sent = frozenset(request.sent_request_ids)
        unsent = [one for one in self._ledger.open_calls(request.proxy_id) if one not in sent]
        reports = [wire.not_sent(request_id, principal().caller.name) for request_id in unsent]
        for start in range(0, len(reports), _MAX_SETTLEMENTS):
            self._decisions.commit(reports[start : start + _MAX_SETTLEMENTS], [], timeout=_time_left(context))
        return pb.ReleaseUnsentResponse(released=len(unsent))

    def RenewLease(self, request: pb.RenewLeaseRequest, context: grpc.ServicerContext) -> pb.RenewLeaseResponse:
        """Keeps calls of an internal service open."""
        _at_most("request_ids", len(request.request_ids), _MAX_SETTLEMENTS)
        renewed = self._ledger.renew(list(request.request_ids), principal().caller.name)
        return pb.RenewLeaseResponse(request_ids=renewed, lease=wire.lease(wire.SERVICE_LEASE_SECONDS))

    def _admission(self, message: pb.ValidateTokenRequest) -> Admission:
        return wire.admission_from_proto(message, key=self._token_key, identity=principal().caller.name)

    def _report(self, message: pb.RecordUsageRequest) -> Report:
        return wire.report_from_proto(message, caller=principal().caller)

    def _books(self, secret: str, now: datetime) -> token_usage.TokenBooks:
        token_hash = wire.secret_hash(self._token_key, secret)
        books = token_usage.find(self._db, token_hash, now)
        if books is None:
            # A look through the ledger's door adopts what a person may have written into the table meanwhile.
            self._ledger.commit([], [Admission(token_hash, Call(""), principal().caller.name)])
            books = token_usage.find(self._db, token_hash, now)
        if books is None:
            raise TokenUnknown("This token is not known here.")
        return books


def _each(convert: Callable[..., object], messages: Sequence[object]) -> list[object]:
    """Each message converted, or the fault that it has: one bad item never fails its neighbours."""
    converted: list[object] = []
    for message in messages:
        try:
            converted.append(convert(message))
        except GatewayError as error:
            converted.append(error)
    return converted


def _settlement_result(answer: Settled | GatewayError) -> pb.SettlementResult:
    if isinstance(answer, Settled):
        return pb.SettlementResult(response=wire.settled_to_proto(answer))
    return pb.SettlementResult(error=wire.item_error(_told(answer)))


def _validation_result(answer: Admitted | GatewayError, *, by_proxy: bool) -> pb.ValidationResult:
    if isinstance(answer, (Admitted, Refusal)):
        return pb.ValidationResult(response=wire.validation_to_proto(answer, by_proxy=by_proxy))
    return pb.ValidationResult(error=wire.item_error(_told(answer)))


def _told(answer: Exception) -> GatewayError:
    """What may be told of a fault: its own words if it is one of ours."""
    return answer if isinstance(answer, GatewayError) else Internal("internal error")


def _time_left(context: grpc.ServicerContext) -> float:
    """Seconds for which the caller still waits: what is not begun by then is not done at all."""
    left = context.time_remaining()
    return COMMIT_TIMEOUT if left is None else max(0.0, min(left, COMMIT_TIMEOUT))


def _at_most(field: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidArgument(f"{field} takes at most {most} items")
