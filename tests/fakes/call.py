"""One call as the scripted provider saw it, and how it is written down: the provider's side of the books."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Call:
    """What reached the provider and what went back. Times are Unix seconds."""

    number: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: str
    accepted_at: float
    nonce: str = ""
    model: str = ""
    stream: bool = False
    directives: dict[str, str] = field(default_factory=dict)
    status: int = 0  # 0: no status was sent
    tokens_generated: int = 0
    bytes_sent: int = 0
    usage_told: object = None
    broken: bool = False  # the provider itself ended the connection early
    saw_abort: bool = False  # the caller went away before the end
    ended_at: float = 0.0  # 0: still open

    @property
    def complete(self) -> bool:
        """Whether a whole answer of status 200 left the provider."""
        return self.status == 200 and self.ended_at > 0 and not self.broken and not self.saw_abort


def to_line(call: Call) -> str:
    """The ledger's line of a call: written when it is accepted and again when it ends; the later one holds."""
    return json.dumps(asdict(call), separators=(",", ":")) + "\n"


def read_ledger(path: Path) -> list[Call]:
    """All calls of a ledger file, in the order of their acceptance, each as it was last written."""
    return merge(path.read_text().splitlines()) if path.exists() else []


def merge(lines: Iterable[str]) -> list[Call]:
    """Calls from ledger lines. A last line that is still being written is left out."""
    calls: dict[int, Call] = {}
    for line in lines:
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        fields["headers"] = [tuple(pair) for pair in fields["headers"]]
        calls[fields["number"]] = Call(**fields)
    return [calls[number] for number in sorted(calls)]
