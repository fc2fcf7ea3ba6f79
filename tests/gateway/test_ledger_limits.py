"""Limits in the ledger, on both databases: exact over several processes, and right at every boundary."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from gateway import errors
from gateway.admission import Admitted
from gateway.ids import uuid7
from gateway.quota import Call
from gateway.storage.database import connect
from gateway.storage.reconcile import reconcile
from gateway.usage import Outcome
from tests.support.ledger import (
    DOLLAR,
    MODEL,
    PROXY,
    TOKEN_PRICE,
    MovedClock,
    add_token,
    admission,
    make_database,
    open_ledger,
    released,
    settled,
    token_row,
)


class SetClock(MovedClock):
    """A clock that stands where the test has put it."""

    def __init__(self, at: datetime) -> None:
        super().__init__()
        self.at = at

    def now(self) -> datetime:
        return self.at


@pytest.fixture
def db(database_url):
    db = make_database(database_url)
    yield db
    assert reconcile(db) == []
    db.close()


@pytest.fixture
def clock():
    now = datetime.now(UTC)
    return SetClock(now.replace(second=1, microsecond=0))


@pytest.fixture
def ledger(db, clock):
    ledger = open_ledger(db, clock)
    yield ledger
    ledger.close()


def admit(ledger, **changes):
    changes.setdefault("request_id", uuid7(int(ledger._clock.now().timestamp() * 1000)))
    asked = admission(**changes)
    (answer,) = ledger.commit([], [asked], timeout=20.0).admissions
    return asked.request_id, answer


def limit_of(answer):
    assert isinstance(answer, errors.RateLimited), answer
    return answer.metadata["limit"]


def spend(ledger, dollars):
    """A call that costs so much."""
    count = int(dollars * DOLLAR // TOKEN_PRICE)
    request_id, answer = admit(ledger, read=count, limit=1)
    assert isinstance(answer, Admitted), answer
    ledger.commit([settled(request_id, read=count, written=0)], [])
    return request_id


@pytest.mark.parametrize(("limit", "most"), [("requests_per_minute", 60), ("max_parallel_requests", 5)])
def test_two_processes_let_through_exactly_what_the_limit_says(db, database_url, clock, limit, most):
    add_token(db, max_amount=None, **{limit: most})
    databases = [connect(database_url, busy_timeout=5.0) for _ in range(2)]
    ledgers = [open_ledger(database, clock) for database in databases]
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda n: admit(ledgers[n % 2], limit=1, read=1)[1], range(most * 3)))
    assert sum(isinstance(answer, Admitted) for answer in answers) == most
    assert {limit_of(answer) for answer in answers if not isinstance(answer, Admitted)} == {limit}
    for opened, database in zip(ledgers, databases, strict=True):
        opened.close()
        database.close()


def test_the_next_minute_is_open_again(db, ledger, clock):
    add_token(db, max_amount=None, requests_per_minute=1)
    assert admit(ledger)[1].rate_limits[0].remaining == 0
    refused = admit(ledger)[1]
    assert (limit_of(refused), refused.retry_after) == ("requests_per_minute", 59.0)
    clock.at += timedelta(seconds=59)
    assert isinstance(admit(ledger)[1], Admitted)


def test_a_call_that_ended_makes_room_for_another_one(db, ledger):
    add_token(db, max_amount=None, max_parallel_requests=1)
    first, _ = admit(ledger)
    assert limit_of(admit(ledger)[1]) == "max_parallel_requests"
    ledger.commit([released(first)], [])
    second, _ = admit(ledger)
    assert limit_of(admit(ledger)[1]) == "max_parallel_requests"
    ledger.expire(request_ids=[second])
    assert isinstance(admit(ledger)[1], Admitted)


def test_tokens_a_minute_are_those_that_were_used_and_until_then_those_expected(db, ledger, clock):
    add_token(db, max_amount=None, tokens_per_minute=1_000)
    request_id, answer = admit(ledger, read=400, limit=800)  # 100 and 800 are expected
    assert answer.rate_limits[0].remaining == 100
    assert admit(ledger, read=400, limit=800)[1].rate_limits[0].remaining == 0
    assert limit_of(admit(ledger)[1]) == "tokens_per_minute"
    ledger.commit([settled(request_id, read=10, written=20)], [])  # 30 instead of 900
    assert admit(ledger, read=4, limit=9)[1].rate_limits[0].remaining == 1_000 - 900 - 30 - 10
    clock.at += timedelta(minutes=1)
    ledger.commit([settled(admit(ledger, read=4, limit=9)[0], read=5, written=5)], [])
    late, _ = admit(ledger, read=4, limit=9)
    clock.at += timedelta(minutes=1)
    ledger.commit([settled(late, read=500, written=499)], [])  # belongs to the minute that it was admitted in
    assert admit(ledger, read=4, limit=9)[1].rate_limits[0].remaining == 990


def test_a_call_of_which_nobody_knows_what_it_used_stays_counted_with_what_was_expected(db, ledger):
    add_token(db, max_amount=None, tokens_per_minute=1_000)
    request_id, answer = admit(ledger, read=400, limit=800)  # 100 and 800 are expected
    ledger.commit([settled(request_id, outcome=Outcome.SETTLED_AT_HOLD, usage={})], [])
    implausible, answer = admit(ledger, read=40, limit=40)
    assert answer.rate_limits[0].remaining == 50
    ledger.commit([settled(implausible, read=-1)], [])
    refused_upstream, answer = admit(ledger, read=40, limit=20)
    assert answer.rate_limits[0].remaining == 20
    ledger.commit([released(refused_upstream)], [])
    assert admit(ledger, read=4, limit=1)[1].rate_limits[0].remaining == 48


def test_a_repeat_and_a_look_count_for_nothing(db, ledger):
    add_token(db, max_amount=None, requests_per_minute=2)
    asked = admission()
    for _ in range(3):
        assert isinstance(ledger.commit([], [asked]).admissions[0], Admitted)
    assert isinstance(admit(ledger, request_id="")[1], Admitted)
    assert isinstance(admit(ledger)[1], Admitted)
    assert limit_of(admit(ledger)[1]) == "requests_per_minute"


def test_addresses_are_judged_with_the_rest(db, ledger):
    add_token(db, max_amount=None, allowed_ips="192.0.2.0/24")
    here = Call(MODEL, client_ip="192.0.2.4")
    assert isinstance(admit(ledger, call=here)[1], Admitted)
    assert isinstance(admit(ledger, call=Call(MODEL, client_ip="198.51.100.4"))[1], errors.IpNotAllowed)
    assert isinstance(admit(ledger, call=Call("", client_ip="198.51.100.4"), request_id="")[1], errors.IpNotAllowed)


@pytest.mark.parametrize(("period", "days"), [("daily", 1), ("weekly", 7), ("monthly", 31)])
def test_a_spent_budget_starts_anew_with_the_period(db, ledger, clock, period, days):
    add_token(db, max_amount="1", budget_period=period)
    spend(ledger, 1 - 0.001)
    refused = admit(ledger, read=10, limit=90)[1]
    assert isinstance(refused, (errors.RequestExceedsBudget, errors.BudgetExhausted))
    assert refused.metadata["resets_at"] > f"{clock.at:%Y-%m-%d}"
    clock.at += timedelta(days=days)
    assert isinstance(admit(ledger)[1], Admitted)
    row = token_row(db)
    assert (row["period_spent_nanos"], row["total_spent_nanos"]) == (0, int(0.999 * DOLLAR))


def test_what_was_admitted_in_an_older_period_settles_into_the_totals_only(db, ledger, clock):
    add_token(db, max_amount="1", budget_period="daily")
    old, _ = admit(ledger, read=100, limit=100)
    lost, _ = admit(ledger, read=100, limit=100)
    clock.at += timedelta(days=1)
    new, _ = admit(ledger, read=100, limit=100)
    ledger.commit([settled(old, read=100, written=100), settled(new, read=100, written=50)], [])
    ledger.expire(proxy_id=PROXY)
    ledger.commit([settled(lost, read=1, written=1)], [])
    row = token_row(db)
    assert row["period_spent_nanos"] == 150 * TOKEN_PRICE
    assert row["total_spent_nanos"] == 352 * TOKEN_PRICE
    assert row["held_nanos"] == 0


def test_the_reset_comes_once_whoever_comes_first(db, database_url, clock):
    add_token(db, max_amount="1", budget_period="daily")
    databases = [connect(database_url, busy_timeout=5.0) for _ in range(2)]
    ledgers = [open_ledger(database, clock) for database in databases]
    spend(ledgers[0], 0.5)
    clock.at += timedelta(days=1)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: admit(ledgers[n % 2], limit=9, read=1), range(150)))
    assert sum(isinstance(answer, Admitted) for _, answer in answers) == 100
    for opened, database in zip(ledgers, databases, strict=True):
        opened.close()
        database.close()


def test_a_row_by_hand_may_have_every_limit(db, ledger, clock):
    add_token(db, amount_spent="0.4", budget_period="monthly", requests_per_minute=3, allowed_ips="192.0.2.1, 10.0.0.0/8")
    call = Call(MODEL, input_token_ceiling=10, max_output_tokens=590, client_ip="10.1.2.3")
    request_id, answer = admit(ledger, call=call)
    assert isinstance(answer, Admitted)
    ledger.commit([released(request_id)], [])
    assert db.query("SELECT allowed_ips FROM client_tokens") == [("192.0.2.1,10.0.0.0/8",)]
    assert token_row(db)["period_spent_nanos"] == int(0.4 * DOLLAR)
    with db.write():
        db.run("UPDATE client_tokens SET amount_spent = 0.5")
    clock.at += timedelta(days=31)
    assert isinstance(admit(ledger, call=call)[1], Admitted)
    assert token_row(db)["total_spent_nanos"] == DOLLAR // 2


def test_addresses_that_cannot_be_read_switch_a_row_by_hand_off(db, ledger):
    add_token(db, allowed_ips="somewhere")
    assert isinstance(admit(ledger)[1], errors.TokenDisabled)
    assert "somewhere" in db.query("SELECT after_json FROM audit")[0][0]
