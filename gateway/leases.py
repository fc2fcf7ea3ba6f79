"""Leases by observation: who has been silent for so long that nobody will report for him any more.

Only what this process has itself seen counts, in monotonic time. A clock step frees nothing, and an observer that was away,
stopped or restarted starts to wait anew.
"""

from __future__ import annotations

from collections.abc import Mapping


class LeaseWatch:
    """Watches counters that grow while their owners live.

    patience: seconds without growth after which an owner counts as gone.
    most_per_look: seconds that one look can add, however long ago the last one was: time in which this process itself was
    stopped is not silence of the others.
    """

    def __init__(self, *, patience: float, most_per_look: float) -> None:
        self._patience = patience
        self._most_per_look = most_per_look
        self._seen: dict[str, tuple[int, float]] = {}
        self._last_look: float | None = None

    def look(self, beats: Mapping[str, int], monotonic: float) -> list[str]:
        """Takes note of the counters at a moment; gives the owners that have been silent for too long."""
        passed = 0.0 if self._last_look is None else min(monotonic - self._last_look, self._most_per_look)
        self._last_look = monotonic
        seen: dict[str, tuple[int, float]] = {}
        for owner, beat in beats.items():
            known = self._seen.get(owner)
            seen[owner] = (beat, known[1] + passed) if known is not None and known[0] == beat else (beat, 0.0)
        self._seen = seen
        return [owner for owner, (_, silent) in seen.items() if silent >= self._patience]
