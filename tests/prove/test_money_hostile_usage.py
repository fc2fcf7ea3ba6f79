"""M12: usage that nobody can have meant neither empties a budget nor is free, and breaks nothing."""

from __future__ import annotations

import pytest

from gateway.stubs.auth.v1 import auth_pb2 as pb
from tests.prove.calls import insist
from tests.prove.ledger import patiently, report, stubs, validation
from tests.prove.site import Site, outcomes
from tests.suite.conftest import PRICED, RATES
from tests.suite.load import Told
from tests.suite.stack import price

HELD = [f"mock-usage-{shape}" for shape in ("negative", "text", "float", "huge", "bool", "object", "dear")]
HELD += ["mock-usage-input-negative", "mock-usage-cached-negative"]
"""Numbers that cannot be believed: charged at the hold."""
COUNTED = ["mock-no-usage", *(f"mock-usage-{shape}" for shape in ("null", "partial", "empty", "list", "string"))]
"""None, or a part of them: charged by what was counted, at most the hold."""
PRICES = "".join(price(model, input=RATES.input, output=RATES.output) for model in (*HELD, *COUNTED) if model not in PRICED)
EVENTS = "gateway_ledger_events_total"
REPORTS = {
    "-1": {"input": 10, "output": -1},
    "the least number": {"input": -(2**63), "output": 5},
    "the greatest number": {"input": 10, "output": 2**63 - 1},
    "10^18": {"input": 10**18, "output": 10**18},
    "one above a billion": {"input": 10, "output": 10**9 + 1},
    "a part above its whole": {"input": 10, "output": 5, "cached_input": 11},
    "a part without its whole": {"output": 5, "cached_input": 3},
    "a unit that there is not": {"input": 10, "output": 5, "gold": 1},
    "101 holds": {"input": 0, "output": 101 * 100},
}
"""Usage as an internal service may report it, for a call that holds 100 output tokens."""


def by_rpc(site: Site, proof, token: str) -> int:
    """Reports over gRPC; gives how many there were."""
    wrong = []
    with stubs(site) as auths:
        for number, (shape, usage) in enumerate(REPORTS.items()):
            stub = auths[number % len(auths)]
            asked = validation(token, "gpt-test", max_output_tokens=100)
            held = patiently(stub.ValidateToken, asked).grant.held_nanos
            answer = patiently(stub.RecordUsage, report(asked.request_id, "gpt-test", usage))
            [row] = site.stack.query("SELECT usage_source, cost_nanos FROM requests WHERE request_id = ?", asked.request_id)
            expected = pb.RecordUsageResponse(cost_nanos=held, remaining_nanos=answer.remaining_nanos, state="settled")
            if answer != expected or tuple(row.values()) != ("estimated", held) or held <= 0:
                wrong.append(f"{shape}: {answer} {row} of {held}")
    proof.equals(f"{len(REPORTS)} reports over gRPC that were not charged at the hold, estimated", wrong, [])
    return len(REPORTS)


@pytest.mark.proves("M12")
async def test_usage_that_nobody_can_have_meant_is_charged_within_the_hold_and_told(site, proof):
    """`design.md` has it settled at the hold where the numbers are hostile; where they are missing, what was counted."""
    site = site("auth", "proxy", prices=PRICES, is_forked=True)
    token, each = site.token(max_amount=10), proof.size(20, 1)
    told: list[Told] = []
    with site.watched() as watch:
        for model in (*HELD, *COUNTED):
            for stream in (False, True):
                fields = {"model": model, "stream": stream, "max_tokens": 500, "prompt": "tokens:50"}
                told += await insist(site.doors, token, each, **fields)
        services = by_rpc(site, proof, token)
    proof.equals(f"outcomes of {len(HELD) + len(COUNTED)} shapes, plain and streamed", dict(outcomes(told)), {"200": len(told)})
    rows = [row for row in site.installation.calls(token) if row["request_model"].startswith("mock-")]
    rows = [row for row in rows if row["error_code"] != "not_sent"]  # admitted too late for a caller, who came again
    proof.equals("sources of the rows", {row["usage_source"] for row in rows}, {"estimated"})
    held = [row for row in rows if row["request_model"] in HELD]
    odd = [
        (row["request_model"], row["cost_nanos"], row["held_nanos"]) for row in held if row["cost_nanos"] != row["held_nanos"]
    ]
    proof.equals(f"of {len(held)} with hostile numbers, not charged at the hold", odd[:3], [])
    counted = [row for row in rows if row["request_model"] in COUNTED]
    odd = [(row["request_model"], row["cost_nanos"]) for row in counted if not 0 < row["cost_nanos"] < row["held_nanos"]]
    proof.equals(f"of {len(counted)} with numbers missing, free or at the whole hold", odd[:3], [])
    proof.equals("samples in which spending fell", watch.fell[:3], [])
    alarms = len(held) + services
    proof.equals("alarms: implausible_usage", site.metric_once(EVENTS, alarms, event="implausible_usage"), alarms)
    [after] = await insist(site.doors, token, 1, model="gpt-test")
    proof.equals("an honest call then passes", after.whole, True)
    proof.equals("services that crashed, or logs of it", site.crashes(), [])
    site.settle(RATES, estimates=None)
