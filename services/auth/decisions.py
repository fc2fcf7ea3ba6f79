"""The way from the RPCs into the ledger and back: one commit, and what an operator is told of it in metrics and log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from gateway.admission import Admission, Admitted, BatchOutcome, Settled
from gateway.errors import GatewayError, Internal, Refusal
from gateway.process import logs
from gateway.process.log_floods import LogFloods
from gateway.storage.ledger import COMMIT_TIMEOUT, Ledger
from gateway.usage import Report
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics

_log = logs.get_logger(__name__)


class Decisions:
    """Commits, and tells of it. An RPC may carry many calls, so each line of the log names its call by `request_id`.

    Refusals and faults are logged at `info` and above; what went well only at `debug`, as the proxy logs each call. Of many
    refusals of one token, or of tokens that do not exist, the first ones have a line and the others are summarized.
    """

    def __init__(self, *, ledger: Ledger, denials: DenialLog, metrics: AuthMetrics) -> None:
        self._ledger = ledger
        self._denials = denials
        self._metrics = metrics
        self._floods = LogFloods(lambda **facts: _log.info("denials_summarized", **facts))

    def commit(
        self, reports: Sequence[Report], admissions: Sequence[Admission], *, timeout: float = COMMIT_TIMEOUT
    ) -> BatchOutcome:
        """Books and decides in one transaction with whatever else waits. Raises DatabaseUnavailable."""
        started = time.perf_counter()
        self._metrics.waiting(1)
        try:
            outcome = self._ledger.commit(reports, admissions, timeout=timeout)
        except GatewayError as error:
            self._metrics.failed()
            if logs.debugging():
                for request_id in (item.request_id for items in (reports, admissions) for item in items):
                    _log.debug("not committed", request_id=request_id, reason=error.reason)
            raise
        finally:
            self._metrics.waiting(-1)
        if count := len(reports) + len(admissions):
            self._metrics.committed(count, time.perf_counter() - started)
        if admissions:
            self._tell_admissions(admissions, outcome.admissions)
        if reports:
            self._tell_settlements(reports, outcome.settlements)
        return outcome

    def disowned(self, proxy_id: str, calls: int) -> None:
        """Notes that a proxy process did not know calls that stood as open for it, and that they ended at their hold."""
        self._metrics.expired(calls)
        _log.warning("calls_disowned", proxy_id=proxy_id, calls=calls)

    def _tell_admissions(self, admissions: Sequence[Admission], answers: Sequence[Admitted | GatewayError]) -> None:
        counts: Counter[tuple[str, str]] = Counter()
        debugging = logs.debugging()
        for admission, answer in zip(admissions, answers, strict=True):
            if isinstance(answer, Admitted):
                counts["granted" if admission.request_id else "looked", ""] += 1
                if debugging and admission.request_id:
                    _log.debug(
                        "admitted",
                        request_id=admission.request_id,
                        token_id=answer.token_id,
                        model=admission.call.request_model,
                        held_nanos=answer.held_nanos,
                    )
                continue
            self._denials.note(admission, answer)
            reason = answer.reason if isinstance(answer, GatewayError) else Internal.reason
            denied = isinstance(answer, Refusal)
            counts["denied" if denied else "failed", reason] += 1
            told_id = admission.request_id or admission.look_id
            if denied and (told_id or debugging):
                token_id = answer.metadata.get("token_id", "")
                if not debugging and not self._floods.admits(token_id, reason):
                    continue
                _log.info(
                    "denied",
                    request_id=told_id,
                    token_id=token_id,
                    model=admission.call.request_model,
                    reason=reason,
                )
            elif not denied:
                _tell_fault("admission failed", admission.request_id, answer)
        self._metrics.decided(counts)

    def _tell_settlements(self, reports: Sequence[Report], answers: Sequence[Settled | GatewayError]) -> None:
        counts: Counter[tuple[str, str]] = Counter()
        debugging = logs.debugging()
        for report, answer in zip(reports, answers, strict=True):
            if isinstance(answer, Settled):
                counts[answer.state, report.source] += 1
                if debugging:
                    _log.debug("settled", request_id=report.request_id, state=answer.state, cost_nanos=answer.cost_nanos)
            else:
                self._metrics.refused(answer.reason if isinstance(answer, GatewayError) else Internal.reason)
                _tell_fault("settlement refused", report.request_id, answer)
        self._metrics.settled(counts)


def _tell_fault(event: str, request_id: str, fault: Exception) -> None:
    if isinstance(fault, GatewayError) and fault.reason != Internal.reason:
        _log.warning(event, request_id=request_id, reason=fault.reason, fault=fault.message)
    else:
        _log.error(event, request_id=request_id, reason=Internal.reason, exc_info=fault)
