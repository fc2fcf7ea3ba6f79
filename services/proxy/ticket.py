"""One admitted call on its way to exactly one settlement.

The ticket knows at every moment what the settlement would say: what was not sent is released, what was refused is released
with its status, what went out and was never answered is charged at the hold, what was answered is charged by the meter.
Whoever holds a ticket calls `settle` in a `finally`; only the first time counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.pricing import Rates
from gateway.settlement import charge
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.usage import Outcome, Report, Source
from services.proxy.books import Outbox
from services.proxy.dialects.openai import ChatCall
from services.proxy.metering import Meter, Reading
from services.proxy.providers.base import Target
from services.proxy.upstream import Sending

PROGRESS_INTERVAL = 1.0
_NOTHING: dict[str, int] = {}
_OUTCOMES = {pb.OUTCOME_SETTLED: Outcome.SETTLED, pb.OUTCOME_SETTLED_AT_HOLD: Outcome.SETTLED_AT_HOLD}
_SOURCES = {pb.USAGE_SOURCE_PROVIDER: Source.PROVIDER, pb.USAGE_SOURCE_ESTIMATED: Source.ESTIMATED}


@dataclass(slots=True)
class Ticket:
    """A call that auth has admitted."""

    request_id: str
    token_key: bytes
    call: ChatCall
    grant: pb.Grant
    outbox: Outbox
    arrived: float
    """When the request came, by `clock`."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    target: Target | None = None
    """Where the latest attempt went."""
    status: int = 0
    """The status of the latest answer; 0: none."""
    meter: Meter | None = None
    """Counts the answer; None: there is none."""
    error_code: str = "interrupted"
    """What went wrong; empty: nothing. A call that nobody brings to an end was interrupted."""
    ttft_ms: int = 0
    attempts: list[dict[str, Any]] = field(default_factory=list)
    left: bool = False
    """Whether the caller went away before the end."""
    handed_over: bool = False
    """Whether someone else settles it, who lets the answer run to its end without the caller."""
    settlement: pb.RecordUsageRequest | None = None
    """What was reported; None: nothing yet."""
    _usage: Mapping[str, int] = field(default_factory=dict)
    """The counts of the latest report."""
    _sending: Sending | None = None
    _next_progress: float = 0.0

    @property
    def limit(self) -> int | None:
        """The output limit in tokens for one choice that the request carries upstream; None: none."""
        return self.grant.max_output_tokens if self.grant.HasField("max_output_tokens") else self.call.limit

    def attempt(self, target: Target, sending: Sending) -> None:
        """Notes that an attempt begins."""
        self.target, self._sending, self.status = target, sending, 0
        self.error_code = "interrupted"
        self.attempts.append({"provider": target.provider.name, "model": target.model})

    def failed(self, error_code: str, status: int = 0) -> None:
        """Notes how the attempt failed; with a status, it was refused and nothing was served."""
        self.error_code, self.status = error_code, status
        if status:
            self._sending = None
        self.attempts[-1]["error"] = status or error_code

    def answered(self, status: int, meter: Meter) -> None:
        """Notes that the provider answers."""
        self.status, self.meter = status, meter
        self.attempts[-1]["status"] = status
        self._next_progress = self.clock() + PROGRESS_INTERVAL

    def first_byte(self) -> None:
        """Notes that the answer begins."""
        if not self.ttft_ms:
            self.ttft_ms = max(1, self._elapsed())

    def hung_up(self) -> None:
        """Notes that the caller went away."""
        self.left = True
        self.error_code = "client_closed"

    def tick(self) -> None:
        """Notes the progress of a stream in the outbox, once a second."""
        now = self.clock()
        if now >= self._next_progress:
            self._next_progress = now + PROGRESS_INTERVAL
            self.outbox.progress(self.request_id, self.report())

    def settle(self) -> pb.RecordUsageRequest:
        """Puts the settlement into the outbox, the first time; gives what was reported."""
        if self.settlement is None:
            self.settlement = self.report()
            self.outbox.append(self.settlement, self.token_key)
        return self.settlement

    async def kept(self) -> None:
        """Settles, and returns when that outlives this process: before the caller has the end of the answer."""
        self.settle()
        await self.outbox.kept(self.request_id)

    def cost_nanos(self) -> int | None:
        """What the ledger charges for the settlement, by the same rule at the grant's prices; None: not known here."""
        settlement, target = self.settlement, self.target
        if settlement is None or target is None or settlement.outcome == pb.OUTCOME_RELEASED:
            return None
        for price in self.grant.prices:
            if price.provider == target.provider.name and price.model == target.model:
                rates = Rates.from_json(price.rates_json) if price.rates_json else None
                outcome, source = _OUTCOMES[settlement.outcome], _SOURCES[settlement.source]
                report = Report(self.request_id, outcome, identity="", usage=self._usage, source=source)
                return charge(report, held_nanos=self.grant.held_nanos, rates=rates).cost_nanos
        return None

    def report(self) -> pb.RecordUsageRequest:
        """The settlement as it would be now."""
        reading = self._reading()
        self._usage = reading.items
        report = pb.RecordUsageRequest(
            request_id=self.request_id,
            outcome=reading.outcome,
            source=reading.source,
            usage=[pb.UsageItem(unit=unit, count=count) for unit, count in reading.items.items()],
            status=self.status,
            error_code=self.error_code,
            usage_json=reading.usage_text,
            ttft_ms=self.ttft_ms,
            duration_ms=self._elapsed(),
        )
        if self.target is not None:
            redactor = self.target.provider.keys.redactor
            report.usage_json = redactor.redact_text(report.usage_json)[:4096]
            report.served.provider = self.target.provider.name
            report.served.model = self.target.model
            if self.meter is not None:
                report.response_model = redactor.redact_text(self.meter.response_model)[:256]
        if len(self.attempts) > 1:
            report.attempts_json = json.dumps(self.attempts)[:4096]
        return report

    def _reading(self) -> Reading:
        if self.meter is not None:
            return self.meter.reading()
        if self._sending is None or not self._sending.sent:
            return Reading(pb.OUTCOME_RELEASED, pb.USAGE_SOURCE_NONE, _NOTHING)
        if self.left and self.call.stream:
            # Of a stream that its caller left before it began, nobody has seen anything generated: its input is charged.
            return self.new_meter().reading()
        return Reading(pb.OUTCOME_SETTLED_AT_HOLD, pb.USAGE_SOURCE_ESTIMATED, _NOTHING)

    def new_meter(self) -> Meter:
        """A meter for a whole answer to this call."""
        return Meter(bound=self.call.bound, limit=self.limit, choices=self.call.choices)

    def _elapsed(self) -> int:
        return round((self.clock() - self.arrived) * 1000)
