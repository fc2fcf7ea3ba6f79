"""What goes through the ledger's door and what comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from gateway.errors import GatewayError
from gateway.explain import Explanation
from gateway.limits import RateLimit
from gateway.quota import Call, PricedCandidate
from gateway.usage import State


@dataclass(frozen=True, slots=True)
class Admission:
    """One call that wants to be made, as the ledger takes it."""

    token_hash: str
    """Hex of `gateway.tokens.hash_secret`; the secret itself never comes here."""
    call: Call
    identity: str
    """The certificate's name of whoever asks."""
    request_id: str = ""
    """Empty: only look; nothing is held and no row is written."""
    candidates: tuple[tuple[str, str], ...] = ()
    """(provider, model) of each place where the call may go."""
    parent_request_id: str = ""
    endpoint: str = ""
    dialect: str = ""
    stream: bool = False
    client_ip: str = ""
    user_agent: str = ""
    proxy_id: str = ""
    token_id: int = 0
    """For a dry run, in place of `token_hash`; 0: by the hash."""
    look_id: str = ""
    """For a look: the id under which its refusal is kept; empty: it is only counted."""
    digest: str = ""
    """The same for the same arguments; a repeat with another one is refused."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Yes. `request_id` is held for, unless it was only looked."""

    token_id: int
    held_nanos: int
    max_output_tokens: int | None
    candidates: Sequence[PricedCandidate] = ()
    rate_limits: Sequence[RateLimit] = ()
    """The token's limits a minute, after this call."""


@dataclass(frozen=True, slots=True)
class PriceOrigin:
    """Where a row of the price book comes from. source: `admin`, `file` or `builtin`; valid_from: empty: always."""

    source: str
    valid_from: str


@dataclass(frozen=True, slots=True)
class Explained:
    """What a call would be answered at a moment, and why. Nothing was done."""

    at: datetime
    token_id: int
    """0: no live token has this secret."""
    answer: Admitted | GatewayError
    explanation: Explanation
    candidates: Sequence[PricedCandidate]
    origins: Sequence[PriceOrigin | None]
    """Of each candidate's price; None: it has none."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A report that is booked, now or by an earlier copy."""

    state: State
    cost_nanos: int
    remaining_nanos: int | None
    """What is left on the token, holds not taken off; None: no budget."""


@dataclass(slots=True)
class BatchOutcome:
    """One answer an item, in the order of the batch."""

    settlements: list[Settled | GatewayError] = field(default_factory=list)
    admissions: list[Admitted | GatewayError] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    """What an operator wants counted: `implausible_usage`, `overrun`, `conflicting_report`, `adopted`."""
