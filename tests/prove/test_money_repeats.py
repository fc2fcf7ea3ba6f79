"""M8: a report is booked once, however often it is delivered; another one for the same call is refused."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import grpc
import pytest

from gateway.clock import from_text, to_text
from gateway.errors import AlreadyExists
from gateway.ids import uuid7
from gateway.rpc.status import from_status
from gateway.stubs.auth.v1 import auth_pb2 as pb
from tests.prove.ledger import patiently, report, stubs, validation
from tests.prove.site import Site
from tests.suite.database import change
from tests.suite.stack import wait_for

MODEL = "gpt-test"  # $1 and $2 a million tokens
USAGE = {"input": 1_000, "output": 500}
COST = 2_000_000
TIMES = 50
DAY = 26 * 3600  # seconds


def delivered(auths: list, message: pb.RecordUsageRequest, times: int) -> list[Any]:
    """What each of so many deliveries at once gets, over all auths and each RPC that takes reports: a response, or a reason."""

    def one(number: int) -> Any:
        stub = auths[number % len(auths)]
        if number % 3 == 0:
            try:
                return patiently(stub.RecordUsage, message)
            except grpc.RpcError as error:
                return from_status(error).reason
        while True:
            if number % 3 == 1:
                answer = patiently(stub.BatchRecordUsage, pb.BatchRecordUsageRequest(settlements=[message]))
            else:
                answer = patiently(stub.BatchValidateTokens, pb.BatchValidateTokensRequest(settlements=[message]))
            [result] = answer.settlements
            if result.WhichOneof("result") == "response":
                return result.response
            if result.error.code != grpc.StatusCode.UNAVAILABLE.value[0]:
                return result.error.reason

    with ThreadPoolExecutor(TIMES) as pool:
        return list(pool.map(one, range(times)))


def books(site: Site) -> tuple[Any, ...]:
    """Everything that a report can change."""
    return tuple(
        site.stack.query(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("client_tokens", "requests", "daily_totals")
    )


def restart(site: Site) -> None:
    """Each auth, one after the other."""
    for name in site.all_of("auth"):
        site.stack.stop(name)
        site.stack.start(name)
        wait_for(f"{name} is ready", lambda name=name: site.stack.is_ready(name))


def age(site: Site) -> None:
    """Moves the moments of the one call a day back, in the database."""
    [row] = site.stack.query("SELECT admitted_at, settled_at FROM requests")
    moments = [to_text(from_text(str(row[name])) - timedelta(seconds=DAY)) for name in ("admitted_at", "settled_at")]
    change(site.stack.database, "UPDATE requests SET admitted_at = ?, settled_at = ?", *moments)
    day = str(datetime.fromisoformat(moments[0]).date())
    change(site.stack.database, "UPDATE daily_totals SET day = ?", day)


@pytest.mark.proves("M8")
def test_a_report_that_comes_again_changes_nothing_and_another_one_is_refused(site, proof):
    """A day later: the call's id is of a day ago from the start, and the moments of its row are moved back in the database."""
    site = site("auth", "proxy", is_forked=True)
    token = site.token(max_amount=1)
    request_id = uuid7(int((time.time() - DAY) * 1000))
    asked = validation(token, MODEL, request_id=request_id, input_token_ceiling=1_000, max_output_tokens=500)
    first = report(request_id, MODEL, USAGE)
    other = report(request_id, MODEL, USAGE | {"output": 501})
    with stubs(site) as auths:
        grant = patiently(auths[0].ValidateToken, asked).grant
        proof.equals("held before", grant.held_nanos, COST)
        answers = delivered(auths, first, TIMES)
        wanted = pb.RecordUsageResponse(cost_nanos=COST, remaining_nanos=10**9 - COST, state="settled")
        proof.equals(f"of {TIMES} at once got the same answer", sum(answer == wanted for answer in answers), TIMES)
        row = site.row(token)
        proof.equals("spent, held, calls", (row["total_spent_nanos"], row["held_nanos"], row["request_count"]), (COST, 0, 1))
        proof.equals("tokens counted", row["total_tokens"], 1_500)
        proof.equals("rows", len(site.stack.query("SELECT * FROM requests")), 1)
        before = books(site)
    restart(site)
    with stubs(site) as auths:
        answers = delivered(auths, first, TIMES)
        proof.equals("after a restart got the same answer", sum(answer == wanted for answer in answers), TIMES)
        proof.equals("after a restart the books are as before", books(site) == before, True)
        age(site)
        before = books(site)
        answers = delivered(auths, first, TIMES)
        proof.equals("a day later got the same answer", sum(answer == wanted for answer in answers), TIMES)
        proof.equals("a day later the books are as before", books(site) == before, True)
        answers = delivered(auths, other, TIMES)
        refused = sum(answer == AlreadyExists.reason for answer in answers)
        proof.equals("another amount was refused", refused, TIMES)
        withdrawn = delivered(auths, report(request_id, MODEL, {}, outcome=pb.OUTCOME_RELEASED), 3)
        proof.equals("that nothing was served was refused", set(withdrawn), {AlreadyExists.reason})
        proof.equals("after the refusals the books are as before", books(site) == before, True)
        proof.equals("the first one again", delivered(auths, first, 1), [wanted])
    records = site.stack.query("SELECT actor, subject FROM audit WHERE action = 'usage.conflict'")
    proof.equals("audit records of refusals", len(records), TIMES + 3)
    proof.equals(
        "they name", {(record["actor"], record["subject"]) for record in records}, {("service:proxy", f"request:{request_id}")}
    )
    site.reconcile()
