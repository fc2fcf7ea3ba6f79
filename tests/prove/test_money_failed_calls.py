"""M10: a call that its provider refused costs nothing, holds nothing and stays on record with its status."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.prove.calls import insist
from tests.prove.site import Site, outcomes
from tests.suite.conftest import RATES
from tests.suite.stack import price

STATUSES = {400: "400 None", 404: "404 None", 500: "502 upstream_error"}
"""What the row names, with what the caller gets."""
OTHERS = {
    413: "413 None",
    422: "422 None",
    401: "502 upstream_credentials",
    503: "502 upstream_error",
    529: "502 upstream_error",
}
PRICES = "".join(
    price(f"mock-status-{status}", input=RATES.input, output=RATES.output)
    for status in (*STATUSES, *OTHERS)
    if status not in {400, 401, 429, 500}  # which every installation of the tests has
)


async def _refused(site: Site, proof, token: str, status: int, told_as: str, each: int) -> None:
    model = f"mock-status-{status}"
    before = len(site.provider.calls())
    told = [one for stream in (False, True) for one in await insist(site.doors, token, each, model=model, stream=stream)]
    proof.equals(f"{status}: callers get", dict(outcomes(told)), {told_as: 2 * each})
    # Without those that were admitted too late for their caller, who came again.
    rows = [row for row in site.installation.calls(token) if row["request_model"] == model and row["error_code"] != "not_sent"]
    found = Counter(f"{row['state']} {row['usage_source']} {row['cost_nanos']} {row['status']}" for row in rows)
    proof.equals(f"{status}: rows", dict(found), {f"released none 0 {status}": 2 * each})
    proof.equals(f"{status}: rows without a reason", sum(not row["error_code"] for row in rows), 0)
    held = {row["held_nanos"] > 0 for row in rows}
    proof.equals(f"{status}: each had held money", held, {True})
    upstream = len(site.provider.calls()) - before
    attempts = sum(len(json.loads(row["attempts_json"])) if row["attempts_json"] else 1 for row in rows)
    proof.equals(f"{status}: attempts on the rows are those that came upstream", attempts, upstream)


@pytest.mark.proves("M10")
async def test_a_call_that_the_provider_refuses_costs_nothing_and_stays_on_record(site, proof):
    """400, 404 and 500 as the row says, and further ones. 5xx may be tried again under the same admission, so the books are
    compared by attempts."""
    site = site("auth", "proxy", prices=PRICES, is_forked=True)
    token, each = site.token(max_amount=1), proof.size(20, 2)
    with site.watched():
        for status, told_as in (STATUSES | OTHERS).items():
            await _refused(site, proof, token, status, told_as, each)
    row = site.row(token)
    proof.equals("spent, held, open", (row["total_spent_nanos"], row["held_nanos"], row["open_calls"]), (0, 0, 0))
    [after] = await insist(site.doors, token, 1, model="gpt-test")
    proof.equals("a good call then passes", after.whole, True)
    site.reconcile()
