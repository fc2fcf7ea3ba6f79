"""Compares the gateway's books with the provider's: what must hold whatever was killed in between.

A call is known by its nonce: it stands in the prompt, where the scripted provider finds it, and in the User-Agent, which the
gateway keeps in the call's row. Prices are computed here anew, from the rates alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

from tests.fakes.call import Call, read_ledger
from tests.suite.database import Database, select

NANOS = 1_000_000_000
AGENT = "nonce/"


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens, and per call."""

    input: str = "0"
    output: str = "0"
    per_request: str = "0"

    def nanos(self, usage: dict[str, Any]) -> int:
        """What this usage costs, rounded half to even."""
        per_million = Decimal(self.input) * usage["prompt_tokens"] + Decimal(self.output) * usage["completion_tokens"]
        exact = (per_million / 1_000_000 + Decimal(self.per_request)) * NANOS
        return int(exact.quantize(Decimal(1), ROUND_HALF_EVEN))


@dataclass
class Findings:
    """What was compared, and what is wrong. Nothing is wrong when `problems` is empty."""

    accepted: int = 0
    rows: int = 0
    exact: int = 0
    estimated: int = 0
    unreported: int = 0
    """Calls that reached the provider and that nobody reported: their rows are open or have expired."""
    charged_without_call: int = 0
    """Rows at their hold whose call never reached the provider: the proxy was killed between writing it down and sending it."""
    problems: list[str] = field(default_factory=list)


def audit(database: Database, ledger: Path, prices: Prices, *, answered: Collection[str] = ()) -> Findings:
    """Checks I1 to I6 over everything that the ledger of the provider and the database hold.

    answered: nonces whose callers had the whole answer with status 200; those must be charged exactly.
    """
    rows = select(database, "SELECT * FROM requests")
    tokens = select(database, "SELECT * FROM client_tokens")
    sums = select(database, "SELECT token_id, SUM(amount_nanos) AS amount FROM adjustments GROUP BY token_id")
    adjusted = {row["token_id"]: int(row["amount"]) for row in sums}
    calls = [call for call in read_ledger(ledger) if call.nonce]
    findings = Findings(accepted=len(calls), rows=len(rows))
    by_nonce = {row["user_agent"].removeprefix(AGENT): row for row in rows}
    _every_call_has_one_row(calls, rows, findings)
    for call in calls:
        if row := by_nonce.get(call.nonce):
            _row_says_what_the_call_was(call, row, prices, findings)
    _rows_have_their_calls({call.nonce for call in calls}, rows, findings)
    for nonce in answered:
        row = by_nonce.get(nonce)
        if row is None or row["usage_source"] != "provider":
            findings.problems.append(f"{nonce} was answered in full and is not charged exactly: {_short(row)}")
    for token in tokens:
        own = [row for row in rows if row["token_id"] == token["id"]]
        _books_add_up(token, own, adjusted.get(token["id"], 0), findings)
    return findings


def _every_call_has_one_row(calls: list[Call], rows: list[dict[str, Any]], findings: Findings) -> None:
    """I1, I2: as many rows as calls for each nonce."""
    accepted = Counter(call.nonce for call in calls)
    booked = Counter(row["user_agent"].removeprefix(AGENT) for row in rows if row["user_agent"].startswith(AGENT))
    for nonce, count in accepted.items():
        if booked[nonce] != count:
            findings.problems.append(f"I1: the provider accepted {nonce} {count} times, and it has {booked[nonce]} rows")
    findings.problems += [f"I2: {nonce} has {count} rows" for nonce, count in booked.items() if count > 1]


def _row_says_what_the_call_was(call: Call, row: dict[str, Any], prices: Prices, findings: Findings) -> None:
    """I3, I4: the provider's numbers exactly, or an estimate up to the hold; never free when something was generated."""
    findings.unreported += row["state"] in {"admitted", "expired"}
    if row["usage_source"] == "provider":
        findings.exact += 1
        told = call.usage_told
        if not isinstance(told, dict) or row["cost_nanos"] != prices.nanos(told):
            findings.problems.append(f"I3: {call.nonce} told {told} and is charged {_short(row)}")
    elif row["usage_source"] in {"estimated", "counted"}:
        findings.estimated += 1
        if row["cost_nanos"] > row["held_nanos"]:
            findings.problems.append(f"I4: {call.nonce} is estimated above its hold: {_short(row)}")
    if call.tokens_generated and call.status == 200 and row["cost_nanos"] == 0 and row["state"] != "admitted":
        findings.problems.append(f"I4: {call.nonce} generated {call.tokens_generated} tokens for free: {_short(row)}")


def _rows_have_their_calls(nonces: set[str], rows: list[dict[str, Any]], findings: Findings) -> None:
    """I2: what is charged by the provider's numbers reached the provider."""
    for row in rows:
        nonce = row["user_agent"].removeprefix(AGENT)
        if nonce in nonces or row["state"] == "released" or not row["user_agent"].startswith(AGENT):
            continue
        if row["usage_source"] == "estimated" and row["cost_nanos"] == row["held_nanos"]:
            findings.charged_without_call += 1
        elif row["state"] != "admitted":
            findings.problems.append(f"I2: {nonce} never reached the provider: {_short(row)}")


def _books_add_up(token: dict[str, Any], rows: list[dict[str, Any]], adjusted: int, findings: Findings) -> None:
    """I5, I6, and the budget itself."""
    name, spent = token["name"] or token["id"], token["opening_nanos"] + sum(row["cost_nanos"] for row in rows) + adjusted
    if token["total_spent_nanos"] != spent:
        findings.problems.append(f"I5: {name} has spent {token['total_spent_nanos']}, its rows say {spent}")
    held = sum(row["held_nanos"] for row in rows if row["state"] == "admitted")
    if token["held_nanos"] != held or token["open_calls"] != sum(row["state"] == "admitted" for row in rows):
        findings.problems.append(f"I6: {name} holds {token['held_nanos']} for {token['open_calls']}, its rows {held}")
    limit = token["max_amount_nanos"]
    if limit is not None and token["budget_mode"] == "strict" and token["period_spent_nanos"] + token["held_nanos"] > limit:
        findings.problems.append(f"I7: {name} is above its budget: {token['period_spent_nanos']} + {token['held_nanos']}")


def open_holds(database: Database) -> int:
    """How many calls are still open. 0 once everything has been reported."""
    [row] = select(database, "SELECT COUNT(*) AS open FROM requests WHERE state = 'admitted'")
    return int(row["open"])


def files_with(folder: Path, secret: str) -> list[str]:
    """The files below a folder that hold this text."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def _short(row: dict[str, Any] | None) -> str:
    if row is None:
        return "no row"
    return ", ".join(
        f"{key}={row[key]}" for key in ("state", "usage_source", "cost_nanos", "held_nanos", "status", "error_code")
    )
