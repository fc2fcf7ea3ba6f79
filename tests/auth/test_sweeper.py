"""Who is silent for too long loses his holds; clock steps, pauses and restarts of the observer free nothing."""

from __future__ import annotations

import threading
from datetime import timedelta

from prometheus_client import CollectorRegistry

from gateway.clock import to_text
from gateway.leases import LeaseWatch
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics
from services.auth.sweeper import Sweeper
from tests.support.ledger import (
    PROXY,
    MovedClock,
    add_token,
    admission,
    make_database,
    open_ledger,
    request_row,
    settled,
    token_row,
)


def test_an_owner_is_gone_after_the_patience_without_a_beat():
    watch = LeaseWatch(patience=60, most_per_look=10)
    assert [watch.look({"a": 1, "b": second}, second * 5.0) for second in range(12)] == [[]] * 12
    assert watch.look({"a": 1, "b": 12}, 60.0) == ["a"]


def test_time_in_which_the_observer_itself_was_stopped_is_not_silence():
    watch = LeaseWatch(patience=60, most_per_look=10)
    watch.look({"a": 1}, 0.0)
    assert watch.look({"a": 1}, 100_000.0) == []


def test_a_restarted_observer_starts_to_wait_anew():
    watch = LeaseWatch(patience=60, most_per_look=10)
    assert watch.look({"a": 1}, 1_000_000.0) == []


def test_calls_of_a_silent_proxy_are_charged_and_those_of_a_living_one_stay_open(database_url):
    clock = MovedClock()
    db = make_database(database_url)
    add_token(db)
    ledger = open_ledger(db, clock)
    sweeper = Sweeper(db=db, ledger=ledger, denials=DenialLog(clock), clock=clock, metrics=AuthMetrics(CollectorRegistry()))
    living = "0193e2c4-7b1a-7c3d-9f00-1a2b3c4d5e6f"
    dead_call, living_call, leased = admission(), admission(proxy_id=living), admission(proxy_id="", identity="billing")
    ledger.commit([], [dead_call, living_call, leased])
    ledger.beat(PROXY, "here")
    for _ in range(14):
        ledger.beat(living, "there")
        sweeper.look()
        clock.seconds += 5
    assert request_row(db, dead_call.request_id)["state"] == "expired"
    assert request_row(db, living_call.request_id)["state"] == "admitted"
    assert request_row(db, leased.request_id)["state"] == "admitted"
    for _ in range(120):
        ledger.beat(living, "there")
        sweeper.look()
        clock.seconds += 5
    assert request_row(db, leased.request_id)["state"] == "expired"
    ledger.commit([settled(living_call.request_id), settled(dead_call.request_id)], [])
    assert token_row(db)["held_nanos"] == token_row(db)["open_calls"] == 0
    ledger.close()
    db.close()
    assert "ledger-writer" not in {thread.name for thread in threading.enumerate() if not thread.daemon}


def test_ids_of_changes_are_forgotten_after_thirty_days_and_no_sooner(database_url):
    clock = MovedClock()
    db = make_database(database_url)
    ledger = open_ledger(db, clock)
    sweeper = Sweeper(db=db, ledger=ledger, denials=DenialLog(clock), clock=clock, metrics=AuthMetrics(CollectorRegistry()))
    at = {"old": clock.now() - timedelta(days=31), "young": clock.now() - timedelta(days=29)}
    with db.write():
        db.run_many(
            "INSERT INTO operations (request_id, rpc, digest, token_id, created_at) VALUES (?, 'CreateToken', '', 1, ?)",
            [(f"{age}-{number}", to_text(moment)) for age, moment in at.items() for number in range(450)],
        )
    sweeper.look()
    assert db.query("SELECT substr(request_id, 1, 5), COUNT(*) FROM operations GROUP BY 1") == [("young", 450)]
    ledger.close()
    db.close()
