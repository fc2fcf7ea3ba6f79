"""Refusals, counted in memory and written behind: they cost a call nothing."""

from __future__ import annotations

import threading

from gateway.admission import Admission, Admitted
from gateway.clock import Clock, to_text
from gateway.errors import DatabaseUnavailable, GatewayError, Refusal
from gateway.storage.ledger import Ledger

_MOST_KEYS = 10_000  # beyond this, refusals of new kinds are only in the metrics until the next flush


class DenialLog:
    """Counts refusals by token, reason and UTC minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[int, str, str], tuple[int, str, str]] = {}

    def note(self, admission: Admission, answer: Admitted | GatewayError) -> None:
        """Counts an answer if it is a refusal."""
        if not isinstance(answer, Refusal):
            return
        minute = to_text(self._clock.now())[:16]
        key = (int(answer.metadata.get("token_id", "0")), answer.reason, minute)
        with self._lock:
            if key in self._counts or len(self._counts) < _MOST_KEYS:
                count = self._counts.get(key, (0, "", ""))[0] + 1
                self._counts[key] = (count, admission.client_ip, admission.request_id)

    def flush(self, ledger: Ledger) -> None:
        """Writes what was counted; keeps it for the next time when the database is away."""
        with self._lock:
            counts, self._counts = self._counts, {}
        if not counts:
            return
        try:
            ledger.add_denials(counts)
        except DatabaseUnavailable:
            with self._lock:
                for key, (count, ip, request_id) in counts.items():
                    newer = self._counts.get(key)
                    self._counts[key] = (count + newer[0], newer[1], newer[2]) if newer else (count, ip, request_id)
            raise
