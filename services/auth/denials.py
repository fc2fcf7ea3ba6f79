"""Refusals, gathered in memory and written behind: they cost a call nothing.

Each one is counted. Each one that has an id is also kept, so that whoever was refused is found by it; of a flood only the first
ones of each flush are, so that nobody can push others out by being refused. That bounds how fast rows are written; how many
there are is bounded by the days after which `pruning` deletes them.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from gateway.admission import Admission, Admitted
from gateway.clock import Clock, to_text
from gateway.errors import DatabaseUnavailable, GatewayError, Refusal
from gateway.storage.ledger import Ledger
from gateway.storage.refusals import UNKNOWN, KeptRefusal

_MOST_KEYS: Final = 10_000  # beyond this, refusals of new kinds are only in the metrics until the next flush
MOST_KEPT: Final = 200
"""Refusals that are kept of one flush, which comes every five seconds: a day of nothing else is 3.5 million rows."""
MOST_ALIKE: Final = 20
"""Of those, how many of one token for one reason from one address."""
MOST_UNKNOWN: Final = 40
"""Of those, how many of unknown tokens, which cost whoever sends them nothing."""
_MINUTE: Final = len("2026-11-25T13:37")


class DenialLog:
    """Counts refusals by token, reason and UTC minute, and keeps single ones."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[int, str, str], tuple[int, str, str]] = {}
        self._kept: dict[str, KeptRefusal] = {}
        self._alike: Counter[tuple[int, str, str]] = Counter()
        self._unknown = 0

    def note(self, admission: Admission, answer: Admitted | GatewayError) -> None:
        """Counts an answer if it is a refusal, and keeps it if there is an id to find it by and room."""
        if not isinstance(answer, Refusal):
            return
        at = to_text(self._clock.now())
        token_id = int(answer.metadata.get("token_id", UNKNOWN))
        request_id = admission.request_id or admission.look_id
        key = (token_id, answer.reason, at[:_MINUTE])
        with self._lock:
            if key in self._counts or len(self._counts) < _MOST_KEYS:
                count = self._counts.get(key, (0, "", ""))[0] + 1
                self._counts[key] = (count, admission.client_ip, request_id)
            if request_id and self._has_room(request_id, token_id, answer.reason, admission.client_ip):
                self._kept[request_id] = _kept(request_id, at, token_id, admission, answer)

    def flush(self, ledger: Ledger) -> None:
        """Writes what was gathered; keeps it for the next time when the database is away."""
        with self._lock:
            counts, self._counts = self._counts, {}
            kept, self._kept = self._kept, {}
            self._alike.clear()
            self._unknown = 0
        if not counts and not kept:
            return
        try:
            ledger.add_denials(counts, list(kept.values()))
        except DatabaseUnavailable:
            with self._lock:
                for key, (count, ip, request_id) in counts.items():
                    newer = self._counts.get(key)
                    self._counts[key] = (count + newer[0], newer[1], newer[2]) if newer else (count, ip, request_id)
                for request_id, refusal in (kept | self._kept).items():
                    if request_id in self._kept or len(self._kept) < MOST_KEPT:
                        self._kept.setdefault(request_id, refusal)
            raise

    def _has_room(self, request_id: str, token_id: int, reason: str, client_ip: str) -> bool:
        """Whether one more may be kept; takes its place. The same id again takes none."""
        if request_id in self._kept:
            return True
        alike = (token_id, reason, client_ip)
        if len(self._kept) >= MOST_KEPT or self._alike[alike] >= MOST_ALIKE:
            return False
        if token_id == UNKNOWN:
            if self._unknown >= MOST_UNKNOWN:
                return False
            self._unknown += 1
        self._alike[alike] += 1
        return True


def _kept(request_id: str, at: str, token_id: int, admission: Admission, refusal: Refusal) -> KeptRefusal:
    figures = {name: value for name, value in refusal.metadata.items() if name != "token_id"}
    return KeptRefusal(
        request_id=request_id,
        at=at,
        token_id=token_id,
        reason=refusal.reason,
        message=refusal.message,
        figures=figures,
        endpoint=admission.endpoint,
        request_model=admission.call.request_model,
        client_ip=admission.client_ip,
    )
