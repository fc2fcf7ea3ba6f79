"""An auth service in memory, for tests: tokens, prices and calls in dictionaries, decided and charged by the real rules.

`gateway.quota.admit` decides, `gateway.settlement.charge` charges. It answers the messages of the protocol, so that the fakes
share every conversion with the real clients. What it leaves out: addresses, several candidates' routing, retention.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from google.protobuf.duration_pb2 import Duration

from gateway.client.memory_wire import call_of, grant_message, report_of
from gateway.clock import to_text
from gateway.errors import AlreadyExists, AuthUnavailable, InvalidArgument, NotFound, Refusal, RequestWithdrawn, TokenUnknown
from gateway.money import to_nanos
from gateway.pricing import Rate, Rates
from gateway.quota import PricedCandidate, TokenState, admit, judge, status
from gateway.rpc.refusals import denial_of
from gateway.settlement import charge
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.usage import INPUT, OUTPUT, Outcome, Source, State

LEASE: Final = 600.0
IDENTITY: Final = "fake"


@dataclass(slots=True)
class MemoryToken:
    """A token and its counters."""

    state: TokenState
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class MemoryCall:
    """A call, as the ledger's row of it. Money in nano-dollars."""

    request_id: str
    token_id: int
    model: str
    question: bytes
    state: State
    held_nanos: int
    max_output_tokens: int | None
    candidates: tuple[PricedCandidate, ...]
    lease_ends: datetime
    at: datetime
    cost_nanos: int = 0
    source: Source = Source.NONE
    usage: Mapping[str, int] = field(default_factory=dict)
    error_code: str = ""
    digest: str = ""


class MemoryAuth:
    """Answers like auth, from memory. Safe to use from many threads.

    away: while it is true nothing answers, as when auth is down.
    """

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.away = False
        self.calls: dict[str, MemoryCall] = {}
        self._now = now
        self._skipped = timedelta(0)
        self._lock = threading.RLock()
        self._tokens: dict[str, MemoryToken] = {}
        self._prices: dict[tuple[str, str], PricedCandidate] = {}
        self._tombstones: set[str] = set()

    # -- what a test sets up ---------------------------------------------------------------------------------------------------

    def add_token(
        self,
        token: str,
        *,
        max_amount: Decimal | str | float | None = None,
        models: str = "",
        expires_at: str | None = None,
        enabled: bool = True,
        strict: bool = True,
    ) -> int:
        """Adds a token or replaces it, and gives its id. max_amount: its budget in currency units; None: none.

        models: comma-separated names, `*` as a wildcard; empty: all.
        """
        with self._lock:
            known = self._tokens.get(token)
            number = known.state.id if known is not None else len(self._tokens) + 1
            maximum = None if max_amount is None else to_nanos(max_amount)
            state = TokenState(number, enabled, expires_at, models or None, maximum, strict, 0, 0)
            self._tokens[token] = MemoryToken(state)
            return number

    def set_price(
        self,
        model: str,
        *,
        provider: str = "",
        context_window: int | None = None,
        max_output_tokens: int | None = None,
        **rates: str,
    ) -> None:
        """Gives a model a price. rates: decimals in quotes, per million tokens for `input` and `output`."""
        with self._lock:
            made = Rates({unit: Rate(Decimal(rate)) for unit, rate in rates.items()})
            price_id = len(self._prices) + 1
            self._prices[(provider, model)] = PricedCandidate(
                provider, model, price_id, made, context_window, max_output_tokens
            )

    def skip(self, seconds: float) -> None:
        """Lets time pass. Calls whose lease ends meanwhile expire: they are charged their hold, for now."""
        with self._lock:
            self._skipped += timedelta(seconds=seconds)
            for call in self.calls.values():
                if call.state is State.ADMITTED and call.lease_ends <= self._clock():
                    token = self._by_id(call.token_id).state
                    token.held_nanos -= call.held_nanos
                    token.period_spent_nanos += call.held_nanos
                    call.state, call.cost_nanos, call.source = State.EXPIRED, call.held_nanos, Source.ESTIMATED

    # -- what the client calls -------------------------------------------------------------------------------------------------

    def validate(self, request: pb.ValidateTokenRequest) -> pb.ValidateTokenResponse:
        """Decides a call, or only looks."""
        with self._lock:
            self._answer()
            if request.dry_run:
                raise InvalidArgument("this fake explains nothing: ask a real auth with dry_run")
            try:
                return pb.ValidateTokenResponse(grant=self._decide(request))
            except Refusal as refusal:
                return pb.ValidateTokenResponse(denial=denial_of(refusal))

    def record(self, message: pb.RecordUsageRequest) -> pb.RecordUsageResponse:
        """Settles a call. Raises AlreadyExists for another report, NotFound for a call that was never admitted."""
        with self._lock:
            self._answer()
            report = report_of(message, IDENTITY)
            call = self.calls.get(report.request_id)
            if call is None:
                if report.outcome is not Outcome.RELEASED:
                    raise NotFound("this call was never admitted; ValidateToken comes first")
                self._tombstones.add(report.request_id)
                return pb.RecordUsageResponse(state=State.RELEASED)
            token = self._by_id(call.token_id)
            if call.state in (State.SETTLED, State.RELEASED):
                if call.digest != report.digest():
                    raise AlreadyExists("this call was already reported, with other figures; nothing was changed")
                return self._booked(call, token)
            served = [
                c for c in call.candidates if not report.model or (c.provider, c.model) == (report.provider, report.model)
            ]
            if not served:
                raise InvalidArgument("served is no candidate of this call")
            decided = charge(report, held_nanos=call.held_nanos, rates=served[0].rates)
            if call.state is State.ADMITTED:
                token.state.held_nanos -= call.held_nanos
            token.state.period_spent_nanos += decided.cost_nanos - call.cost_nanos
            token.prompt_tokens += decided.usage.get(INPUT, 0)
            token.completion_tokens += decided.usage.get(OUTPUT, 0)
            call.state, call.cost_nanos, call.source = decided.state, decided.cost_nanos, decided.source
            call.usage, call.error_code, call.digest = decided.usage, report.error_code, report.digest()
            return self._booked(call, token)

    def renew(self, request_ids: Sequence[str]) -> pb.RenewLeaseResponse:
        """Prolongs leases."""
        with self._lock:
            self._answer()
            still = [name for name in request_ids if name in self.calls and self.calls[name].state is State.ADMITTED]
            for request_id in still:
                self.calls[request_id].lease_ends = self._clock() + timedelta(seconds=LEASE)
            return pb.RenewLeaseResponse(request_ids=still, lease=Duration(seconds=int(LEASE)))

    def books(self, request: pb.GetTokenUsageRequest) -> pb.GetTokenUsageResponse:
        """A token's books. Raises TokenUnknown."""
        with self._lock:
            self._answer()
            token = self._find(request.token)
            state = token.state
            answer = pb.GetTokenUsageResponse(
                token_id=state.id,
                status=status(state, self._clock()),
                prompt_tokens=token.prompt_tokens,
                completion_tokens=token.completion_tokens,
                total_tokens=token.prompt_tokens + token.completion_tokens,
                amount_spent_nanos=state.period_spent_nanos,
                max_amount_nanos=state.max_amount_nanos,
                remaining_nanos=self._remaining(token),
                held_nanos=state.held_nanos,
            )
            if request.details:
                self._detail(answer)
            return answer

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        if self.away:
            raise AuthUnavailable("the fake gateway is away", retry_after=1.0)

    def _clock(self) -> datetime:
        return self._now() + self._skipped

    def _find(self, secret: str) -> MemoryToken:
        if secret not in self._tokens:
            raise TokenUnknown("This token is not known here.")
        return self._tokens[secret]

    def _by_id(self, number: int) -> MemoryToken:
        return next(token for token in self._tokens.values() if token.state.id == number)

    def _remaining(self, token: MemoryToken) -> int | None:
        maximum = token.state.max_amount_nanos
        return None if maximum is None else maximum - token.state.period_spent_nanos

    def _priced(self, provider: str, model: str) -> PricedCandidate:
        found = self._prices.get((provider, model)) or self._prices.get(("", model))
        if found is None and not provider:
            found = next((price for (_, name), price in self._prices.items() if name == model), None)
        if found is None:
            return PricedCandidate(provider, model)
        return PricedCandidate(provider, model, found.price_id, found.rates, found.context_window, found.max_output_tokens)

    def _decide(self, request: pb.ValidateTokenRequest) -> pb.Grant:
        token = self._find(request.token)
        now = self._clock()
        if not request.request_id:
            refusal = judge(token.state, call_of(request), now)
            if refusal is not None:
                refusal.metadata["token_id"] = str(token.state.id)
                raise refusal
            return pb.Grant(token_id=token.state.id)
        question = request.SerializeToString(deterministic=True)
        known = self.calls.get(request.request_id)
        if known is not None:
            if known.question != question or known.state is not State.ADMITTED:
                raise AlreadyExists("this id was used for another call, or its call has ended; make a new one")
            return self._granted(known)
        if request.request_id in self._tombstones:
            raise RequestWithdrawn("This call was reported as not made before it was admitted.")
        pairs = [(candidate.provider, candidate.model) for candidate in request.candidates] or [("", request.request_model)]
        candidates = tuple(self._priced(*pair) for pair in pairs)
        decision = admit(token.state, call_of(request), candidates, now)
        if isinstance(decision, Refusal):
            decision.metadata["token_id"] = str(token.state.id)
            raise decision
        token.state.held_nanos += decision.held_nanos
        call = self.calls[request.request_id] = MemoryCall(
            request_id=request.request_id,
            token_id=token.state.id,
            model=request.request_model,
            question=question,
            state=State.ADMITTED,
            held_nanos=decision.held_nanos,
            max_output_tokens=decision.max_output_tokens,
            candidates=candidates,
            lease_ends=now + timedelta(seconds=LEASE),
            at=now,
        )
        return self._granted(call)

    def _granted(self, call: MemoryCall) -> pb.Grant:
        return grant_message(call.token_id, call.held_nanos, call.max_output_tokens, call.candidates, LEASE)

    def _booked(self, call: MemoryCall, token: MemoryToken) -> pb.RecordUsageResponse:
        return pb.RecordUsageResponse(cost_nanos=call.cost_nanos, remaining_nanos=self._remaining(token), state=call.state)

    def _detail(self, answer: pb.GetTokenUsageResponse) -> None:
        mine = [call for call in self.calls.values() if call.token_id == answer.token_id]
        for model in dict.fromkeys(call.model for call in mine if call.state is not State.ADMITTED):
            served = [call for call in mine if call.model == model and call.state is State.SETTLED]
            tokens = sum(call.usage.get(INPUT, 0) + call.usage.get(OUTPUT, 0) for call in served)
            spent = sum(call.cost_nanos for call in served)
            answer.models.add(model=model, requests=len(served), total_tokens=tokens, amount_spent_nanos=spent)
        for call in sorted(mine, key=lambda call: call.request_id, reverse=True)[:20]:
            tokens = call.usage.get(INPUT, 0) + call.usage.get(OUTPUT, 0)
            entry = answer.recent.add(
                request_id=call.request_id, model=call.model, tokens=tokens, amount_nanos=call.cost_nanos, status=call.state
            )
            entry.at.FromJsonString(to_text(call.at))
