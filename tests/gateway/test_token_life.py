"""What administrators do to a token, as the ledger then judges it: grace times, periods that change, top-ups, deletion."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway import errors
from gateway.admission import Admitted
from gateway.client_tokens import checked, new_token
from gateway.clock import to_text
from gateway.ids import uuid7
from gateway.limits import period_start
from gateway.quota import TokenStatus
from gateway.storage import token_usage
from gateway.storage.audit import Actor
from gateway.storage.reconcile import reconcile
from gateway.storage.tokens import TokenStore
from gateway.tokens import hash_secret
from tests.support.ledger import (
    DOLLAR,
    KEY,
    TOKEN_PRICE,
    MovedClock,
    add_token,
    admission,
    make_database,
    open_ledger,
    settled,
    token_row,
)

WE = Actor("admin:ann")
DAY = timedelta(days=1)


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
    return SetClock(datetime.now(UTC).replace(second=1, microsecond=0))


@pytest.fixture
def store(db, clock):
    return TokenStore(db, token_key=KEY, clock=clock)


@pytest.fixture
def ledger(db, clock):
    ledger = open_ledger(db, clock)
    yield ledger
    ledger.close()


def admit(ledger, secret, **changes):
    changes.setdefault("request_id", uuid7(int(ledger._clock.now().timestamp() * 1000)))
    asked = admission(secret=secret, **changes)
    return asked.request_id, ledger.commit([], [asked]).admissions[0]


def opens(ledger, secret):
    answer = admit(ledger, secret, request_id="")[1]
    assert isinstance(answer, (Admitted, errors.TokenUnknown)), answer
    return isinstance(answer, Admitted)


def spend(ledger, secret, tokens):
    request_id, answer = admit(ledger, secret, read=tokens - 1, limit=1)
    assert isinstance(answer, Admitted), answer
    ledger.commit([settled(request_id, read=tokens - 1, written=1)], [])


def make(store, **fields):
    return store.create(new_token(fields), actor=WE)


# -- two secrets --------------------------------------------------------------------------------------------------------------


def test_within_the_grace_time_both_secrets_work_and_after_it_only_the_new_one(db, store, ledger, clock):
    old = make(store)
    new = store.rotate(old.token.id, actor=WE, grace_seconds=60)
    assert new.token.previous_valid_until == clock.at + timedelta(seconds=60)
    assert opens(ledger, old.secret) and opens(ledger, new.secret)
    spend(ledger, old.secret, 3)
    assert token_row(db)["total_spent_nanos"] == 3 * TOKEN_PRICE
    hashed = hash_secret(KEY, old.secret).hex()
    assert token_usage.find(db, hashed, clock.at).state.id == old.token.id
    clock.at += timedelta(seconds=59, microseconds=999_999)
    assert opens(ledger, old.secret)
    clock.at += timedelta(microseconds=1)
    assert not opens(ledger, old.secret) and opens(ledger, new.secret)
    assert token_usage.find(db, hashed, clock.at) is None
    assert store.get(old.token.id).previous_valid_until is None


def test_without_a_grace_time_the_old_secret_is_dead_at_once(store, ledger):
    old = make(store)
    store.rotate(old.token.id, actor=WE)
    assert not opens(ledger, old.secret)


@pytest.mark.parametrize("grace", [0, 3600])
def test_another_rotation_ends_the_grace_time_of_the_one_before(store, ledger, grace):
    first = make(store)
    second = store.rotate(first.token.id, actor=WE, grace_seconds=3600)
    third = store.rotate(first.token.id, actor=WE, grace_seconds=grace)
    assert [opens(ledger, issued.secret) for issued in (first, second, third)] == [False, grace > 0, True]


def test_a_deleted_token_is_opened_by_neither_secret(store, ledger):
    old = make(store)
    new = store.rotate(old.token.id, actor=WE, grace_seconds=3600)
    store.delete(old.token.id, actor=WE)
    assert not opens(ledger, old.secret) and not opens(ledger, new.secret)


def test_a_secret_in_its_grace_time_is_taken(db, store, ledger, clock):
    chosen = store.create(new_token({}, secret="a-chosen-secret"), actor=WE)
    store.rotate(chosen.token.id, actor=WE, grace_seconds=60)
    with pytest.raises(errors.AlreadyExists):
        store.create(new_token({}, secret="a-chosen-secret"), actor=WE)
    add_token(db, "a-chosen-secret")
    assert not opens(ledger, "another-that-nobody-has")  # a miss has auth adopt what was written by hand
    assert db.query("SELECT enabled, token_hash FROM client_tokens ORDER BY id DESC LIMIT 1") == [(0, None)]
    clock.at += timedelta(seconds=60)
    again = store.create(new_token({}, secret="a-chosen-secret"), actor=WE)
    assert admit(ledger, "a-chosen-secret")[1].token_id == again.token.id


@pytest.mark.parametrize("seconds", [-1, 7 * 86_400 + 1])
def test_a_grace_time_is_at_most_seven_days(store, seconds):
    made = make(store)
    with pytest.raises(errors.InvalidArgument, match="grace_seconds is 0 to 604800"):
        store.rotate(made.token.id, actor=WE, grace_seconds=seconds)


# -- periods ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", ["daily", "weekly", "monthly", "total"])
def test_a_period_that_is_changed_counts_what_was_spent_since_it_began(db, store, ledger, clock, period):
    made = make(store, max_amount_nanos=DOLLAR)
    days = []
    for tokens in range(1, 41):  # a day each
        spend(ledger, made.secret, tokens)
        days.append((to_text(clock.at), tokens))
        clock.at += DAY
    clock.at -= DAY
    for step in ("daily", "monthly", period):
        token = store.update(made.token.id, {"budget_period": step}, actor=WE)
        start = period_start(step, clock.at) or ""
        assert token.period_spent_nanos == sum(tokens for at, tokens in days if at >= start) * TOKEN_PRICE
        assert reconcile(db) == []
    assert token.remaining_nanos == DOLLAR - token.period_spent_nanos
    spend(ledger, made.secret, 5)
    assert token_row(db)["period_spent_nanos"] == token.period_spent_nanos + 5 * TOKEN_PRICE


def test_a_call_that_is_open_while_the_period_changes_is_charged_to_the_day_of_its_admission(db, store, ledger, clock):
    made = make(store, max_amount_nanos=DOLLAR)
    before, _ = admit(ledger, made.secret)
    clock.at += DAY
    after, _ = admit(ledger, made.secret)
    store.update(made.token.id, {"budget_period": "daily"}, actor=WE)
    ledger.commit([settled(before, read=1, written=1), settled(after, read=2, written=2)], [])
    assert token_row(db)["period_spent_nanos"] == 4 * TOKEN_PRICE
    assert store.get(made.token.id).amount_spent_nanos == 6 * TOKEN_PRICE


def test_a_period_is_shown_as_it_stands_now_though_nobody_has_called(store, ledger, clock):
    made = make(store, max_amount_nanos=DOLLAR, budget_period="daily")
    spend(ledger, made.secret, 1000)
    spent = store.get(made.token.id)
    assert (spent.status(clock.at), spent.remaining_nanos) == (TokenStatus.EXHAUSTED, 0)
    assert to_text(spent.resets_at) == period_start("daily", clock.at + DAY)
    clock.at += DAY
    fresh = store.get(made.token.id)
    assert (fresh.status(clock.at), fresh.period_spent_nanos, fresh.amount_spent_nanos) == (TokenStatus.ACTIVE, 0, DOLLAR)


def test_what_a_row_by_hand_brings_along_belongs_to_the_day_on_which_it_was_written(db, ledger, store, clock):
    add_token(db, amount_spent="0.9", budget_period="daily")
    clock.at += DAY
    assert isinstance(admit(ledger, "a-token-for-tests", limit=900)[1], Admitted)
    assert token_row(db)["period_spent_nanos"] == 0
    assert store.get(1).amount_spent_nanos == int(0.9 * DOLLAR)


def test_a_period_that_was_written_by_hand_begins_with_what_was_spent_in_it(db, ledger, store, clock):
    made = make(store, max_amount_nanos=DOLLAR)
    spend(ledger, made.secret, 700)
    clock.at += DAY
    spend(ledger, made.secret, 200)
    with db.write():
        db.run("UPDATE client_tokens SET budget_period = 'daily' WHERE id = ?", (made.token.id,))
    assert token_usage.find(db, hash_secret(KEY, made.secret).hex(), clock.at).state.period_spent_nanos == 200 * TOKEN_PRICE
    spend(ledger, made.secret, 300)
    assert token_row(db)["period_spent_nanos"] == 500 * TOKEN_PRICE


# -- the rest of a life -------------------------------------------------------------------------------------------------------


def test_a_top_up_that_revives_a_spent_token_says_so(db, store, ledger):
    made = make(store, max_amount_nanos=DOLLAR)
    assert not store.top_up(made.token.id, DOLLAR, actor=WE).revived
    spend(ledger, made.secret, 2000)
    done = store.top_up(made.token.id, DOLLAR, actor=WE, request_id="0193e2c4-7b1a-7c3d-9f00-1a2b3c4d5e6f")
    assert done.revived
    assert opens(ledger, made.secret)
    assert not store.top_up(made.token.id, DOLLAR, actor=WE, request_id="0193e2c4-7b1a-7c3d-9f00-1a2b3c4d5e6f").revived
    told = db.query("SELECT after_json FROM audit WHERE action = 'token.top_up' ORDER BY id")
    assert ['"revived":true' in text.replace(" ", "") for (text,) in told] == [False, True]


def test_a_deleted_token_keeps_its_history(db, store, ledger):
    made = make(store, max_amount_nanos=DOLLAR, customer="acme")
    spend(ledger, made.secret, 10)
    open_call, _ = admit(ledger, made.secret)
    store.delete(made.token.id, actor=WE)
    ledger.commit([settled(open_call, read=1, written=1)], [])
    assert token_row(db)["total_spent_nanos"] == 12 * TOKEN_PRICE
    assert db.query("SELECT COUNT(*) FROM requests WHERE token_id = ?", (made.token.id,)) == [(2,)]


def test_limits_are_kept_as_they_are_given_and_cleared_one_by_one(store, ledger):
    made = make(store, requests_per_minute=2, tokens_per_minute=0, max_parallel_requests=3, allowed_ips=["192.0.2.0/24"])
    token = made.token
    limits = (token.requests_per_minute, token.tokens_per_minute, token.max_parallel_requests, token.allowed_ips)
    assert limits == (2, 0, 3, ("192.0.2.0/24",))
    changed = store.update(token.id, checked({"tokens_per_minute": None, "allowed_ips": None}), actor=WE)
    assert (changed.requests_per_minute, changed.tokens_per_minute, changed.allowed_ips) == (2, None, ())
    assert all(isinstance(admit(ledger, made.secret)[1], Admitted) for _ in range(2))
    assert admit(ledger, made.secret)[1].metadata["limit"] == "requests_per_minute"
    assert store.get(token.id).open_calls == 2
