"""M6: a hundred thousand random usages cost what exact arithmetic says, to the nano-dollar, and add up to it."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import grpc
import pytest

from gateway.ids import uuid7
from gateway.stubs.auth.v1 import auth_pb2 as pb
from tests.prove.ledger import SECONDS, patiently, report, stubs, validation
from tests.prove.site import Site
from tests.suite.stack import price

AT_ONCE = 64
BUSY = 14  # UNAVAILABLE, of an item
RATES: dict[str, dict[str, str]] = {
    "drift-mini": {"input": "0.15", "output": "0.60"},
    "drift-cached": {"input": "3", "output": "15", "cached_input": "0.30", "cache_write": "3.75"},
    "drift-reasoning": {"input": "1.10", "output": "4.40", "reasoning": "4.41"},
    "drift-odd": {"input": "0.123456789", "output": "9.876543211", "cached_input": "0.000000001"},
    "drift-half": {"input": "0.0005", "output": "0.0015"},  # half a nano-dollar for each token: every odd one is a tie
    "drift-call": {"input": "0.07", "output": "0.31", "per_request": "0.0100000005"},
}
"""Dollars a million tokens, and a call."""
PRICES = "".join(price(model, **rates) for model, rates in RATES.items())


def oracle(model: str, usage: dict[str, int]) -> int:
    """The cost in nano-dollars by decimals alone: each kind of token at its rate, rounded once, half to even."""
    rates = {unit: Decimal(rate) for unit, rate in RATES[model].items()}
    input_rate, output_rate = rates["input"], rates["output"]
    cached, written, reasoning = (usage.get(unit, 0) for unit in ("cached_input", "cache_write", "reasoning"))
    with localcontext() as context:
        context.prec = 60
        per_million = (usage["input"] - cached - written) * input_rate
        per_million += cached * rates.get("cached_input", input_rate) + written * rates.get("cache_write", input_rate)
        per_million += (usage["output"] - reasoning) * output_rate + reasoning * rates.get("reasoning", output_rate)
        dollars = per_million / 1_000_000 + rates.get("per_request", 0)
        return int((dollars * 1_000_000_000).quantize(Decimal(1), ROUND_HALF_EVEN))


def random_usage(chance: random.Random) -> dict[str, int]:
    """Any size from nothing to two million tokens, often small and odd; parts within their whole."""
    read, written = (chance.randrange(10 ** chance.randint(1, 6) * 2) for _ in range(2))
    cached = chance.randint(0, read) if chance.random() < 0.3 else 0
    cache_write = chance.randint(0, read - cached) if chance.random() < 0.3 else 0
    reasoning = chance.randint(0, written) if chance.random() < 0.3 else 0
    parts = {"cached_input": cached, "cache_write": cache_write, "reasoning": reasoning}
    return {"input": read, "output": written, **{unit: count for unit, count in parts.items() if count}}


@dataclass
class Tally:
    """What was asked of the ledger, and what it answered."""

    calls: int = 0
    ties: int = 0
    again: int = 0
    expected: dict[str, int] = field(default_factory=dict)
    """Nano-dollars by token."""
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, token: str, cost: int) -> None:
        with self.lock:
            self.calls += 1
            self.expected[token] = self.expected.get(token, 0) + cost


def is_tie(model: str, usage: dict[str, int]) -> bool:
    """Whether a cost lies exactly between two nano-dollars."""
    exact = sum(Fraction(RATES[model][unit]) * usage.get(unit, 0) for unit in ("input", "output")) * 1000
    return model == "drift-half" and exact.denominator == 2


def answered(stub, batch: pb.BatchValidateTokensRequest, tally: Tally) -> pb.BatchValidateTokensResponse:
    """The answer to a batch; while the database is busy it is sent again, as proxies do, and nothing is booked twice."""
    for _ in range(100):
        try:
            answer = stub.BatchValidateTokens(batch, timeout=SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        else:
            if all(result.error.code != BUSY for results in (answer.settlements, answer.validations) for result in results):
                return answer
        tally.again += 1
        time.sleep(0.05)
    raise TimeoutError("the database is busy for ever")


def work(stub, tokens: list[str], rounds: int, tally: Tally, seed: str) -> None:
    """So many batches: each admits new calls and books those of the batch before."""
    chance = random.Random(seed)
    pending: list[tuple[str, str, str, dict[str, int]]] = []
    for turn in range(rounds + 1):
        asked = []
        for _ in range(AT_ONCE if turn < rounds else 0):
            model, token, usage = chance.choice(list(RATES)), chance.choice(tokens), random_usage(chance)
            asked.append((uuid7(), token, model, usage))
        batch = pb.BatchValidateTokensRequest(
            settlements=[report(request_id, model, usage) for request_id, _, model, usage in pending],
            validations=[
                validation(
                    token,
                    model,
                    request_id=request_id,
                    input_token_ceiling=usage["input"],
                    max_output_tokens=max(1, usage["output"]),
                )
                for request_id, token, model, usage in asked
            ],
        )
        answer = answered(stub, batch, tally)
        for (_, token, model, usage), result in zip(pending, answer.settlements, strict=True):
            cost = oracle(model, usage)
            if result.response.cost_nanos != cost or result.response.state != "settled":
                tally.wrong.append(f"{model} {usage}: {result} instead of {cost}")
            tally.add(token, cost)
            tally.ties += is_tie(model, usage)
        tally.wrong += [str(result) for result in answer.validations if result.response.WhichOneof("result") != "grant"]
        pending = asked


def one_call(stub, token: str, model: str, usage: dict[str, int]) -> pb.RecordUsageResponse:
    """One call by the RPCs for one."""
    asked = validation(token, model, input_token_ceiling=usage["input"], max_output_tokens=max(1, usage["output"]))
    assert patiently(stub.ValidateToken, asked).WhichOneof("result") == "grant"
    return patiently(stub.RecordUsage, report(asked.request_id, model, usage))


def by_hand(site: Site, proof, stub) -> None:
    """The two amounts that anybody can check."""
    token = site.token(max_amount=1)
    proof.equals("$0.15 a million x 7 tokens", one_call(stub, token, "drift-mini", {"input": 7, "output": 0}).cost_nanos, 1050)
    token = site.token(max_amount=1)
    left = [one_call(stub, token, "cent", {"input": 1, "output": 1}).remaining_nanos for _ in range(100)]
    proof.equals(
        "left of $1.00 after 100 x $0.01, in nano-dollars", (left[-1], site.row(token)["period_spent_nanos"]), (0, 10**9)
    )
    denial = patiently(stub.ValidateToken, validation(token, "cent", input_token_ceiling=1, max_output_tokens=1)).denial
    proof.equals("and the next", pb.DenialReason.Name(denial.reason), "DENIAL_REASON_BUDGET_EXHAUSTED")


@pytest.mark.proves("M6")
def test_random_usage_costs_what_exact_arithmetic_says(site, proof):
    """In batches, as proxies report it, because that is five times as fast; two callers at each auth, on the same tokens."""
    site = site("auth", "proxy", prices=PRICES, is_forked=True)
    tokens = [site.token(max_amount=1_000_000) for _ in range(8)]
    tally = Tally()
    with stubs(site) as auths:
        workers = [auths[number % len(auths)] for number in range(4)]
        rounds = -(-proof.size(100_000, 2_000) // AT_ONCE // len(workers))
        with ThreadPoolExecutor(len(workers)) as pool:
            seeds = [f"{proof.chance.random()}" for _ in workers]
            for done in [
                pool.submit(work, stub, tokens, rounds, tally, seed) for stub, seed in zip(workers, seeds, strict=True)
            ]:
                done.result()
        by_hand(site, proof, auths[-1])
    proof.at_least("random usages", tally.calls, proof.size(100_000, 2_000))
    proof.at_least("of which their cost was exactly between two nano-dollars", tally.ties, 1)
    proof.note("batches that were sent again, as the database was busy", tally.again)
    proof.equals("answers that differ from the oracle", tally.wrong[:3], [])
    rows = {token: site.row(token) for token in tokens}
    drift = {token: row["total_spent_nanos"] - tally.expected[token] for token, row in rows.items()}
    proof.equals("difference of the totals, in nano-dollars", sum(map(abs, drift.values())), 0)
    proof.note("charged in all, in dollars", sum(tally.expected.values()) / 1e9)
    totals = site.stack.query(
        "SELECT SUM(cost_nanos) AS cost, COUNT(*) AS calls FROM requests WHERE request_model LIKE 'drift-%'"
    )
    by_rows = int(totals[0]["cost"]) - 1050
    proof.equals("difference of the rows, in nano-dollars", by_rows - sum(tally.expected.values()), 0)
    proof.equals("holds left, in nano-dollars", sum(row["held_nanos"] for row in rows.values()), 0)
    site.reconcile()
