"""One call as a `with` block: granted at its beginning, its lease kept meanwhile, settled at its end.

The rules of the end are those of the ledger: what is known is charged; what cannot be known is charged at the hold, marked
`estimated`; only what was certainly not served is free.
"""

from __future__ import annotations

import time
from typing import Final, Unpack

from gateway.client import wire
from gateway.client.results import Grant, Receipt
from gateway.client.terms import UsageTerms
from gateway.errors import FailedPrecondition
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.usage import Outcome

_NOT_REPORTED: Final = "usage_not_reported"


class CallState:
    """What a block knows of its call; `Call` and `AsyncCall` add how it begins and ends."""

    def __init__(self) -> None:
        self._grant: Grant | None = None
        self._terms: UsageTerms | None = None
        self._started = 0.0
        self.receipt: Receipt | None = None
        """What became of the report; None until the block has ended."""

    @property
    def grant(self) -> Grant:
        """The grant. Raises FailedPrecondition before the block has begun."""
        if self._grant is None:
            raise FailedPrecondition("the call has not begun: use it as `with gateway.call(…) as call:`")
        return self._grant

    @property
    def request_id(self) -> str:
        """The call's id in the ledger."""
        return self.grant.request_id

    @property
    def max_output_tokens(self) -> int | None:
        """The output limit that the call must keep; None: it goes as it was asked for."""
        return self.grant.max_output_tokens

    @property
    def reported(self) -> bool:
        """Whether the block has said what was used, or that nothing was."""
        return self._terms is not None

    def usage(self, **terms: Unpack[UsageTerms]) -> None:
        """Says what has been used so far. The last word counts, also when the block fails afterwards.

        A stream calls it as it goes on, with its totals. Raises InvalidArgument at once for what cannot be reported.
        """
        wire.report(self.grant, terms)
        self._terms = terms

    def release(self, error_code: str = "not_sent") -> None:
        """Says that nothing was served: the call costs nothing. For work that was not begun, or failed without cost."""
        self._terms = {"outcome": Outcome.RELEASED, "error_code": error_code}

    def _begin(self, grant: Grant) -> None:
        self._grant = grant
        self._started = time.monotonic()

    def _report(self, failure: BaseException | None) -> pb.RecordUsageRequest:
        """The report of the block's end."""
        if self._terms is None:
            code = _NOT_REPORTED if failure is None else type(failure).__name__[:64]
            terms = UsageTerms(outcome=Outcome.SETTLED_AT_HOLD, error_code=code)
        else:
            terms = self._terms
            if failure is not None and "error_code" not in terms:
                terms = {**terms, "error_code": type(failure).__name__[:64]}
        if "duration_ms" not in terms:
            terms = {**terms, "duration_ms": int((time.monotonic() - self._started) * 1000)}
        return wire.report(self.grant, terms)
