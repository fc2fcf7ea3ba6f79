"""What a call used, and the reports that say so."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

MAX_COUNT = 1_000_000_000  # above this no provider's number is believed

INPUT = "input"
OUTPUT = "output"
CACHED_INPUT = "cached_input"
CACHE_WRITE = "cache_write"
REASONING = "reasoning"
INPUT_AUDIO = "input_audio"
CACHED_INPUT_AUDIO = "cached_input_audio"
OUTPUT_AUDIO = "output_audio"
PER_REQUEST = "per_request"

# Each unit that is a part of another one's count.
PART_OF: Mapping[str, str] = {
    CACHED_INPUT: INPUT,
    CACHE_WRITE: INPUT,
    INPUT_AUDIO: INPUT,
    CACHED_INPUT_AUDIO: INPUT,
    REASONING: OUTPUT,
    OUTPUT_AUDIO: OUTPUT,
}
UNITS = frozenset({INPUT, OUTPUT, *PART_OF, PER_REQUEST, "per_image", "per_second", "per_1k_chars"})


class State(StrEnum):
    """The states of a call's row; `SETTLED` and `RELEASED` are final."""

    ADMITTED = "admitted"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class Outcome(StrEnum):
    """How a report says that a call ended."""

    RELEASED = "released"
    SETTLED = "settled"
    SETTLED_AT_HOLD = "settled_at_hold"


class Source(StrEnum):
    """Where the numbers of a row come from."""

    PROVIDER = "provider"
    COUNTED = "counted"
    ESTIMATED = "estimated"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Report:
    """How one call ended, as whoever made it says."""

    request_id: str
    outcome: Outcome
    identity: str
    """The certificate's name of whoever reports."""
    provider: str = ""
    model: str = ""
    """The candidate that served, with `provider`; both empty: the first."""
    response_model: str = ""
    usage: Mapping[str, int] = field(default_factory=dict)
    """Counts by unit; parts (cached, reasoning, …) are inside their whole."""
    source: Source = Source.NONE
    status: int = 0
    error_code: str = ""
    usage_json: str = ""
    attempts_json: str = ""
    ttft_ms: int = 0
    duration_ms: int = 0
    token_id: int = 0
    """The token to charge for a call that was never admitted; 0 otherwise."""
    may_record_unadmitted: bool = False
    """Whether the identity has the right to report calls that were never admitted."""

    def digest(self) -> str:
        """The same text for the same report, whoever delivers it and how often."""
        usage = ",".join(f"{unit}={count}" for unit, count in sorted(self.usage.items()))
        served = f"{self.provider}\n{self.model}\n{self.response_model}"
        ending = f"{self.outcome}\n{self.source}\n{self.status}\n{self.error_code}\n{self.token_id}"
        text = f"{self.request_id}\n{ending}\n{usage}\n{self.usage_json}\n{served}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_plausible(usage: Mapping[str, int]) -> bool:
    """Whether a provider can have meant these counts: known units, 0 to a billion each, no part above its whole."""
    return all(
        unit in UNITS and 0 <= count <= MAX_COUNT and count <= usage.get(PART_OF.get(unit, unit), 0)
        for unit, count in usage.items()
    )
