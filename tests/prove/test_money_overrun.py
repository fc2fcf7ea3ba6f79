"""M5: what a provider bills beyond the limit that it was given is charged in full, and is told."""

from __future__ import annotations

import pytest

from tests.prove.calls import insist
from tests.prove.site import Site
from tests.suite.audit import Prices
from tests.suite.load import Told
from tests.suite.stack import price

MODEL = "mock-usage-triple"  # bills three times what it wrote
EVENTS = "gateway_ledger_events_total"
HOLD = 10_000_000  # a cent: 100 tokens
PRICE = price(MODEL, input="0", output="100.00")


async def _billed(site: Site, proof, shape: str, *, stream: bool) -> list[Told]:
    calls = 20
    token = site.token(max_amount=calls * HOLD / 1e9)
    fields = {"model": MODEL, "stream": stream, "max_tokens": 100, "prompt": "tokens:100 seconds:1"}
    told = await insist(site.doors, token, calls, **fields)
    proof.equals(f"{shape}: passed", sum(one.whole for one in told), calls)
    [after] = await insist(site.doors, token, 1, **fields)
    while after.code == "budget_reserved":  # the last of them are being booked
        [after] = await insist(site.doors, token, 1, **fields)
    proof.equals(f"{shape}: the next call gets", (after.status, after.code), (402, "insufficient_quota"))
    # Without those that were admitted too late for their caller, who came again.
    rows = [row for row in site.installation.calls(token) if row["error_code"] != "not_sent"]
    proof.equals(f"{shape}: cost of each call, in holds", {row["cost_nanos"] / row["held_nanos"] for row in rows}, {3.0})
    proof.equals(f"{shape}: recorded by", {row["usage_source"] for row in rows}, {"provider"})
    row = site.row(token)
    proof.equals(f"{shape}: spent, in nano-dollars", row["period_spent_nanos"], calls * 3 * HOLD)
    overshoot = row["period_spent_nanos"] - row["max_amount_nanos"]
    in_flight = sum(row["cost_nanos"] - row["held_nanos"] for row in rows)
    proof.at_most(f"{shape}: above the budget; at most what was billed above holds in flight", overshoot, in_flight)
    return told


@pytest.mark.proves("M5")
async def test_a_provider_that_bills_three_times_the_hold_is_charged_in_full_and_stops_the_token(site, proof):
    """20 calls at once on a budget of 20 holds: all are in flight before the first of them is billed."""
    site = site("auth", "proxy", prices=PRICE, is_forked=True)
    told = await _billed(site, proof, "plain", stream=False)
    told += await _billed(site, proof, "streamed", stream=True)
    proof.equals("overruns that auth counts", site.metric_once(EVENTS, len(told), event="overrun"), len(told))
    proof.equals("numbers that it did not believe", site.metric(EVENTS, event="implausible_usage"), 0)
    site.settle(Prices(output="100.00"), told, capped=False)
