"""One batch of the ledger: settlements first, then admissions, inside one transaction that the caller holds.

Rows are read once, changed in memory by the pure rules of `gateway.settlement` and `gateway.quota`, and written once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from gateway import usage as units
from gateway.admission import Admission, Admitted, BatchOutcome, Explained, Settled
from gateway.clock import to_text
from gateway.errors import (
    AlreadyExists,
    FailedPrecondition,
    GatewayError,
    NotFound,
    PermissionDenied,
    RequestWithdrawn,
    TokenUnknown,
)
from gateway.explain import explain, explain_unknown
from gateway.ids import uuid7_milliseconds
from gateway.limits import expected_tokens, rate_limits
from gateway.quota import Grant, admit, judge
from gateway.settlement import Charge, charge
from gateway.storage.batch_rows import BatchRows, RequestRow, TokenRow, candidates_of, encode_candidates
from gateway.storage.prices import PriceBook
from gateway.usage import Outcome, Report, State

_MINUTE = len("2026-11-25T13:37")  # of a moment as the database keeps it
FINAL_AFTER_DAYS = 7  # a call that nobody reported for so long stays charged as it is, and its id is refused


class Batch:
    """Applies a batch to its rows. For one use.

    now: of the ledger's clock. wall: the wall clock, by which a token expires.
    """

    def __init__(self, rows: BatchRows, prices: PriceBook, now: datetime, *, wall: datetime) -> None:
        self._rows = rows
        self._prices = prices
        self._now = now
        self._wall = wall
        self._now_text = to_text(now)
        self._outcome = BatchOutcome()

    def run(self, settlements: Sequence[Report], admissions: Sequence[Admission]) -> BatchOutcome:
        """Books and decides all items; an item's fault is its answer and leaves the others alone. Raises AdoptFirst."""
        self._prices.refresh()
        self._rows.read(settlements, admissions)
        for report in settlements:
            self._outcome.settlements.append(_answer(self._settle, report))
        for admission in admissions:
            self._outcome.admissions.append(_answer(self._admit, admission))
        self._rows.write()
        return self._outcome

    def explain(self, admission: Admission) -> Explained:
        """Decides one call as `run` would at this moment, and says why. Nothing is written. Raises AdoptFirst, NotFound.

        admission: without a request_id, of a new call.
        """
        self._prices.refresh()
        self._rows.read((), (admission,))
        candidates = [self._prices.find(*candidate) for candidate in admission.candidates]
        token = self._rows.by_hash.get(admission.token_hash)
        if admission.token_id:
            token = self._rows.tokens.get(admission.token_id)
            if token is None or token.deleted_at is not None:
                raise NotFound(f"there is no token {admission.token_id}")
            self._rows.by_hash[admission.token_hash] = token
        explained = None if token is None else explain(token, admission.call, candidates, self._wall)
        # The decision itself, on these rows in memory, which are thrown away.
        answer = _answer(self._admit, replace(admission, request_id=str(uuid4())))
        if explained is None:
            explained = explain_unknown(answer, admission.call, candidates)
        return Explained(
            at=self._now,
            token_id=0 if token is None else token.id,
            answer=answer,
            explanation=explained,
            candidates=candidates,
            origins=[self._prices.origin(candidate.price_id) for candidate in candidates],
        )

    # -- settlements ---------------------------------------------------------------------------------------------------------

    def _settle(self, report: Report) -> Settled:
        row = self._rows.requests.get(report.request_id)
        if row is None:
            return self._settle_unadmitted(report)
        if row.identity != report.identity:
            raise PermissionDenied("this call was opened by another identity, which alone may report it")
        token = self._rows.tokens[row.token_id]
        digest = report.digest()
        if row.state in (State.SETTLED, State.RELEASED):
            if row.report_digest != digest:
                self._conflict(report)
                raise AlreadyExists("this call was already reported, with other figures; nothing was changed")
            return Settled(State(row.state), row.cost_nanos, token.remaining_nanos())
        if row.state == State.EXPIRED and _age_days(row.admitted_at, self._now) > FINAL_AFTER_DAYS:
            raise FailedPrecondition(f"this call was left unreported for {FINAL_AFTER_DAYS} days, and its charge is final")
        provider, model, price_id = _served(row.candidates, report)
        decided = charge(report, held_nanos=row.held_nanos, rates=self._prices.rates(price_id))
        self._book(row, token, report, decided, digest, served=(provider, model, price_id))
        return Settled(decided.state, decided.cost_nanos, token.remaining_nanos())

    def _book(
        self,
        row: RequestRow,
        token: TokenRow,
        report: Report,
        decided: Charge,
        digest: str,
        *,
        served: tuple[str, str, int],
    ) -> None:
        input_tokens, output_tokens = decided.usage.get(units.INPUT, 0), decided.usage.get(units.OUTPUT, 0)
        added = decided.cost_nanos - row.cost_nanos  # an expired row was charged provisionally
        if row.state == State.ADMITTED:
            token.held_nanos -= row.held_nanos
            token.window.open_calls -= 1
        # Where nobody knows what was used, what was expected stays: to hang up early opens no more than the limit.
        is_known = bool(decided.usage) or decided.state is State.RELEASED
        if is_known and (token.window.window_start or "")[:_MINUTE] == row.admitted_at[:_MINUTE]:
            # Not below 0: a clock that went far ahead and back has begun this minute anew.
            counted = token.window.window_tokens + input_tokens + output_tokens - row.expected_tokens
            token.window.window_tokens = max(0, counted)
        token.total_spent_nanos += added
        if token.period_start is None or row.admitted_at >= token.period_start:
            token.period_spent_nanos += added
        token.prompt_tokens += input_tokens
        token.completion_tokens += output_tokens
        token.total_tokens += input_tokens + output_tokens
        served_now = decided.state is State.SETTLED
        token.request_count += served_now
        token.changed = True
        totals = self._rows.totals.setdefault((token.id, row.admitted_at[:10], row.request_model), [0, 0, 0, 0])
        for place, value in enumerate((int(served_now), input_tokens, output_tokens, added)):
            totals[place] += value
        if decided.implausible:
            self._outcome.events["implausible_usage"] += 1
        if decided.overrun_nanos:
            self._outcome.events["overrun"] += 1
        row.state, row.cost_nanos, row.report_digest = decided.state, decided.cost_nanos, digest
        provider, model, price_id = served
        self._rows.updates.append(
            (
                decided.state,
                self._now_text,
                decided.cost_nanos,
                price_id or None,
                provider,
                report.response_model or (model if served_now else ""),
                input_tokens,
                decided.usage.get(units.CACHED_INPUT, 0),
                decided.usage.get(units.CACHE_WRITE, 0),
                output_tokens,
                decided.usage.get(units.REASONING, 0),
                report.usage_json,
                decided.source,
                report.status,
                report.error_code,
                report.attempts_json,
                report.ttft_ms,
                report.duration_ms,
                digest,
                row.request_id,
            )
        )

    def _settle_unadmitted(self, report: Report) -> Settled:
        if _is_too_old(report.request_id, self._now):
            raise FailedPrecondition(f"this id is more than {FINAL_AFTER_DAYS} days old")
        digest = report.digest()
        buried = self._rows.tombstones.get(report.request_id)
        if buried is not None or report.outcome is Outcome.RELEASED:
            if buried is None:
                self._rows.tombstones[report.request_id] = digest
                self._rows.new_tombstones.append((report.request_id, report.identity, digest, self._now_text))
            elif buried != digest:
                raise AlreadyExists("this call was already reported as not made; nothing was changed")
            return Settled(State.RELEASED, 0, None)
        if not report.token_id:
            raise NotFound("this call was never admitted; ValidateToken comes first")
        if not report.may_record_unadmitted:
            raise PermissionDenied(
                "reporting a call that was never admitted needs the right record_unadmitted, which"
                f" `gateway identity create {report.identity} --force --record-unadmitted` gives"
            )
        token = self._rows.tokens.get(report.token_id)
        if token is None:
            raise NotFound(f"there is no token {report.token_id}")
        priced = self._prices.find(report.provider, report.model)
        decided = charge(report, held_nanos=0, rates=priced.rates)
        row = RequestRow(
            request_id=report.request_id,
            token_id=token.id,
            identity=report.identity,
            state=State.EXPIRED,  # neither held nor charged yet: `_book` adds all of it
            candidates=encode_candidates([[priced.provider, priced.model, priced.price_id]]),
            admitted_at=token.admitted_at(self._now_text),
            period_start=token.period_start,
            held_nanos=0,
            granted_max_output_tokens=None,
            cost_nanos=0,
            price_id=priced.price_id or None,
            request_model=report.model,
            admission_digest="",
            report_digest=None,
        )
        self._rows.requests[row.request_id] = row
        self._insert(row, None)
        self._book(row, token, report, decided, digest, served=(priced.provider, priced.model, priced.price_id))
        return Settled(decided.state, decided.cost_nanos, token.remaining_nanos())

    def _conflict(self, report: Report) -> None:
        self._outcome.events["conflicting_report"] += 1
        told = {"outcome": report.outcome, "usage": dict(report.usage), "status": report.status}
        self._rows.audits.append(
            (self._now_text, f"service:{report.identity}", "usage.conflict", f"request:{report.request_id}", json.dumps(told))
        )

    # -- admissions ----------------------------------------------------------------------------------------------------------

    def _admit(self, admission: Admission) -> Admitted:
        token = self._rows.by_hash.get(admission.token_hash)
        if token is None:
            raise TokenUnknown("This token is not known here.")
        if not admission.request_id:
            return self._look(token, admission)
        row = self._rows.requests.get(admission.request_id)
        if row is not None:
            return self._admit_again(token, row, admission)
        if admission.request_id in self._rows.tombstones:
            raise RequestWithdrawn("This call was reported as not made before it was admitted.")
        if _is_too_old(admission.request_id, self._now):
            raise FailedPrecondition(f"this id is more than {FINAL_AFTER_DAYS} days old; make a new one")
        candidates = [self._prices.find(*candidate) for candidate in admission.candidates]
        decision = admit(token, admission.call, candidates, self._wall)
        if not isinstance(decision, Grant):
            decision.metadata["token_id"] = str(token.id)
            raise decision
        limit = admission.call.max_output_tokens if decision.max_output_tokens is None else decision.max_output_tokens
        expected = expected_tokens(admission.call.input_token_ceiling, limit, admission.call.choices)
        token.held_nanos += decision.held_nanos
        token.window.open_calls += 1
        token.window.window_requests += 1
        token.window.window_tokens += expected
        token.last_used_at = self._now_text
        token.changed = True
        row = RequestRow(
            request_id=admission.request_id,
            token_id=token.id,
            identity=admission.identity,
            state=State.ADMITTED,
            candidates=encode_candidates([[c.provider, c.model, c.price_id] for c in candidates]),
            admitted_at=token.admitted_at(self._now_text),
            period_start=token.period_start,
            held_nanos=decision.held_nanos,
            granted_max_output_tokens=decision.max_output_tokens,
            cost_nanos=0,
            price_id=candidates[0].price_id or None,
            request_model=admission.call.request_model,
            admission_digest=admission.digest,
            report_digest=None,
            expected_tokens=expected,
        )
        self._rows.requests[row.request_id] = row
        self._insert(row, admission)
        return Admitted(
            token.id, decision.held_nanos, decision.max_output_tokens, candidates, rate_limits(token.window, self._now)
        )

    def _look(self, token: TokenRow, admission: Admission) -> Admitted:
        refusal = judge(token, admission.call, self._wall)
        if refusal is not None:
            refusal.metadata["token_id"] = str(token.id)
            raise refusal
        return Admitted(token.id, 0, None)

    def _admit_again(self, token: TokenRow, row: RequestRow, admission: Admission) -> Admitted:
        same = row.identity == admission.identity and row.admission_digest == admission.digest
        if not same or row.state != State.ADMITTED:
            raise AlreadyExists("this id was used for another call, or its call has ended; make a new one")
        candidates = [
            replace(self._prices.find(provider, model), price_id=price_id, rates=self._prices.rates(price_id))
            for provider, model, price_id in candidates_of(row.candidates)
        ]
        left = rate_limits(token.window, self._now)
        return Admitted(row.token_id, row.held_nanos, row.granted_max_output_tokens, candidates, left)

    def _insert(self, row: RequestRow, admission: Admission | None) -> None:
        self._rows.inserts.append(
            (
                row.request_id,
                (admission.parent_request_id or None) if admission else None,
                row.token_id,
                row.identity,
                (admission.proxy_id or None) if admission else None,
                row.state,
                admission.endpoint if admission else "",
                admission.dialect if admission else "",
                int(admission.stream) if admission else 0,
                row.request_model,
                row.candidates,
                row.admitted_at,
                row.period_start,
                row.held_nanos,
                row.granted_max_output_tokens,
                row.price_id,
                admission.client_ip if admission else "",
                admission.user_agent if admission else "",
                row.admission_digest,
                row.expected_tokens,
            )
        )


def _answer(apply: Any, item: Any) -> Any:
    try:
        return apply(item)
    except GatewayError as error:
        return error


def _served(candidates: str, report: Report) -> tuple[str, str, int]:
    known = candidates_of(candidates)
    for candidate in known:
        if candidate[0] == report.provider and candidate[1] == report.model:
            return candidate
    return known[0]


def _age_days(text: str, now: datetime) -> float:
    return (now - datetime.fromisoformat(text)).total_seconds() / 86_400


def _is_too_old(request_id: str, now: datetime) -> bool:
    milliseconds = uuid7_milliseconds(request_id)
    return milliseconds is not None and now.timestamp() * 1000 - milliseconds > FINAL_AFTER_DAYS * 86_400_000
