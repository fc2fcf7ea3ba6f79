"""Whatever is done to tokens, in any order, by two processes whose clocks go wrong: the books are those of a plain model.

`Model` (tests/support/books_model.py) says in a few lines what a token has spent, holds and may. The machine does the same to
a real ledger and compares each answer; `gateway reconcile` finds nothing at any step.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway import errors
from gateway.admission import Admitted, Settled
from gateway.client_tokens import NewToken
from gateway.clock import to_text
from gateway.ids import uuid7
from gateway.storage.adjustments import AdjustmentStore
from gateway.storage.audit import Actor
from gateway.storage.database import connect
from gateway.storage.prices import load_rows
from gateway.storage.reconcile import reconcile
from gateway.storage.repricing import Repricing, Selection
from gateway.storage.retention import Position, old_calls
from gateway.storage.tokens import TokenStore
from gateway.usage import Outcome, Source
from tests.support.books_model import DAY, DEAD, MINUTE, Call, Model, beginning
from tests.support.ledger import (
    DOLLAR,
    KEY,
    MODEL,
    TOKEN_PRICE,
    MovedClock,
    admission,
    make_database,
    open_ledger,
    price,
    released,
    settled,
)
from tests.support.postgres import shared_server

WE = Actor("operator")
PERIODS = st.sampled_from(["total", "daily", "weekly", "monthly"])
LIMITS = st.sampled_from([None, None, None, None, None, None, None, 9, 4, 2, 0])
TOKENS_A_MINUTE = st.sampled_from([None, None, None, 1000, 300, 50, 0])
BUDGETS = st.sampled_from([None, DOLLAR, DOLLAR, DOLLAR // 10, 5 * DOLLAR, 5 * DOLLAR, 0])


class SkewedClock(MovedClock):
    """A clock that is `skew` away from the machine's moment."""

    def __init__(self, moment: Any) -> None:
        super().__init__()
        self.moment = moment
        self.skew = timedelta(0)

    def now(self) -> datetime:
        return self.moment() + self.skew


# -- the machine --------------------------------------------------------------------------------------------------------------


class BooksMachine(RuleBasedStateMachine):
    """Two processes over one database, an administrator, and clocks that are moved."""

    def __init__(self) -> None:
        super().__init__()
        self.at = datetime(2026, 3, 30, 23, 58, 40, tzinfo=UTC)
        self.folder = tempfile.TemporaryDirectory()
        self.url = self.make_url()
        self.db = make_database(self.url)
        self.clocks = [SkewedClock(lambda: self.at) for _ in range(2)]
        self.databases = [connect(self.url, busy_timeout=5.0) for _ in range(2)]
        self.ledgers = [open_ledger(db, clock) for db, clock in zip(self.databases, self.clocks, strict=True)]
        self.store = TokenStore(self.db, token_key=KEY, clock=self.clocks[0])
        self.adjustments = AdjustmentStore(self.db, token_key=KEY, clock=self.clocks[0])
        self.tokens: list[Model] = []
        self.calls: dict[str, tuple[Model, Call]] = {}
        self.token_price = TOKEN_PRICE

    def make_url(self) -> str:
        return f"sqlite:///{self.folder.name}/gateway.db"

    def any_token(self, data: Any) -> Model:
        return data.draw(st.sampled_from(self.tokens))

    @initialize(data=st.data())
    def create_the_first(self, data):
        self.make(data)
        self.make(data)

    @precondition(lambda self: len(self.tokens) < 3)
    @rule(data=st.data())
    def create(self, data):
        self.make(data)

    def make(self, data):
        fields = [data.draw(strategy) for strategy in (BUDGETS, PERIODS, LIMITS, TOKENS_A_MINUTE, LIMITS)]
        names = ("max_amount_nanos", "budget_period", "requests_per_minute", "tokens_per_minute", "max_parallel_requests")
        made = self.store.create(NewToken(**dict(zip(names, fields, strict=True))), actor=WE)
        token = Model(made.token.id, [(made.secret, None)], *fields)
        token.enter_period(self.clocks[0].now())
        self.tokens.append(token)

    # -- time ------------------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 20, 60, 3600, 86_400, 8 * 86_400, 31 * 86_400, -1, -20, -61, -3600, -86_400]))
    def time_passes(self, seconds):
        self.at += timedelta(seconds=seconds)

    @rule()
    def midnight_is_near(self):
        self.at = self.at.replace(hour=23, minute=59, second=50)

    @rule(which=st.integers(0, 1), seconds=st.sampled_from([0, 0, 1, 30, -30, 90, 3600]))
    def a_clock_goes_wrong(self, which, seconds):
        self.clocks[which].skew = timedelta(seconds=seconds)

    # -- calls -----------------------------------------------------------------------------------------------------------------

    @rule(
        data=st.data(),
        which=st.integers(0, 1),
        read=st.integers(0, 120),
        limit=st.integers(1, 120),
        count=st.integers(1, 4),
        older=st.sampled_from([0, 0, 0, 0, 1, 2]),
    )
    def admit(self, data, which, read, limit, count, older):
        token, now = self.any_token(data), self.clocks[which].now()
        secret = token.secrets[-1 - min(older, len(token.secrets) - 1)][0]
        ids = [uuid7(int(now.timestamp() * 1000)) for _ in range(count)]
        asked = [admission(one, secret=secret, read=read, limit=limit, proxy_id=f"proxy-{which}") for one in ids]
        for request_id, answer in zip(ids, self.ledgers[which].commit([], asked).admissions, strict=True):
            granted = token.decide(secret, now, read, limit, self.token_price)
            if isinstance(granted, str):
                assert type(answer).__name__ == granted, (answer, token)
                continue
            assert isinstance(answer, Admitted), (answer, token)
            hold = (read + granted) * self.token_price
            assert (answer.held_nanos, answer.max_output_tokens or limit) == (hold, granted)
            expected = -(-read // 4) + granted
            call = Call(request_id, f"proxy-{which}", now, hold, read, granted, expected, self.token_price)
            token.admit(call, now)
            self.calls[request_id] = (token, call)
            most = {
                "requests_per_minute": (token.requests, token.begun),
                "tokens_per_minute": (token.tokens, token.used),
            }
            for told in answer.rate_limits:
                assert (told.limit, told.remaining) == (most[told.name][0], max(0, told.limit - most[told.name][1]))
                assert told.resets_at == token.minute + MINUTE

    @precondition(lambda self: self.calls)
    @rule(
        data=st.data(),
        which=st.integers(0, 1),
        percent=st.integers(0, 100),
        kind=st.sampled_from(["provider", "provider", "estimated", "hold", "released", "repeat"]),
    )
    def report(self, data, which, percent, kind):
        token, call = self.calls[data.draw(st.sampled_from(list(self.calls)))]
        now = self.clocks[which].now()
        read, written = call.read * percent // 100, call.granted * percent // 100
        source = Source.ESTIMATED if kind == "estimated" else Source.PROVIDER
        report = settled(call.id, read=read, written=written, source=source)
        if kind == "hold":
            report = settled(call.id, outcome=Outcome.SETTLED_AT_HOLD, usage={})
        elif kind == "released":
            report = released(call.id)
        elif kind == "repeat":
            report = call.report or report
        (answer,) = self.ledgers[which].commit([report], []).settlements
        if call.is_gone:
            # Its id is refused for its age; by a clock that was set back, as one that was never admitted.
            assert isinstance(answer, (errors.FailedPrecondition, errors.NotFound)) or report.outcome is Outcome.RELEASED
            return
        if call.report is not None and call.report.digest() != report.digest():
            assert isinstance(answer, errors.AlreadyExists)
            return
        if call.state == "expired" and now - call.at > 7 * DAY:
            assert isinstance(answer, errors.FailedPrecondition)
            return
        assert isinstance(answer, Settled), answer
        if call.report is None:
            self.end(token, call, report, now)
        assert answer.cost_nanos == call.cost
        if token.most is not None:
            assert answer.remaining_nanos == token.most - token.entered(now).spent()

    def end(self, token, call, report, now):
        call.report = report
        used = sum(report.usage.values())
        match report.outcome:
            case Outcome.RELEASED:
                token.end(call, "released", 0, 0, now, is_known=True)
            case Outcome.SETTLED_AT_HOLD:
                token.end(call, "settled", call.hold, 0, now, is_known=False)
            case _:
                token.end(call, "settled", used * call.rate, used, now, is_known=True)

    @rule(which=st.integers(0, 1), whose=st.integers(0, 1))
    def expire(self, which, whose):
        ended = [call for _, call in self.calls.values() if call.state == "admitted" and call.proxy == f"proxy-{whose}"]
        assert self.ledgers[which].expire(proxy_id=f"proxy-{whose}") == len(ended)
        for call in ended:
            call.state, call.cost, call.ended = "expired", call.hold, self.clocks[which].now()

    @rule(which=st.integers(0, 1), days=st.sampled_from([1, 9, 30]))
    def prune(self, which, days):
        now = self.clocks[which].now()
        before, position = now - days * DAY, Position()
        while position is not None:
            found, position = old_calls(self.databases[which], before, now, position)
            if found:
                self.ledgers[which].prune(found, before)
        kept = {request_id for (request_id,) in self.db.query("SELECT request_id FROM requests")}
        for request_id in self.calls.keys() - kept:
            call = self.calls[request_id][1]
            assert call.is_gone or (call.ended is not None and call.ended < min(before, now - 8 * DAY))
            call.is_gone = True

    @rule(data=st.data(), which=st.integers(0, 1), reads=st.lists(st.integers(0, 40), min_size=2, max_size=6))
    def calls_come_and_end(self, data, which, reads):
        for read in reads:
            self.admit(data, which, read, 40, 1, 0)
            if self.calls:
                self.report(data, which, read, "provider")

    # -- administration --------------------------------------------------------------------------------------------------------

    @rule(data=st.data(), amount=st.integers(-200, 200).filter(bool))
    def adjust(self, data, amount):
        token, amount = self.any_token(data), amount * TOKEN_PRICE
        if token.total() + amount < 0:
            with pytest.raises(errors.FailedPrecondition):
                self.adjustments.create(token.id, amount, "why", actor=WE)
            return
        token.correct(amount, self.clocks[0].now())
        assert self.adjustments.create(token.id, amount, "why", actor=WE).amount_spent_nanos == token.total()

    @rule(
        data=st.data(),
        change=st.sampled_from(["budget_period", "max_amount_nanos", "tokens_per_minute", "max_parallel_requests"]),
    )
    def update(self, data, change):
        token = self.any_token(data)
        if token.is_deleted:
            return
        match change:
            case "budget_period":
                value = data.draw(PERIODS)
                if value != token.period:
                    token.period, token.start = value, beginning(value, self.clocks[0].now())
            case "max_amount_nanos":
                value = token.most = data.draw(BUDGETS)
            case "tokens_per_minute":
                value = token.tokens = data.draw(TOKENS_A_MINUTE)
            case _:
                value = token.parallel = data.draw(LIMITS)
        shown = self.store.update(token.id, {change: value}, actor=WE)
        assert shown.period_spent_nanos == token.entered(self.clocks[0].now()).spent()

    @rule(data=st.data(), period=PERIODS, dollars=st.none() | st.integers(0, 3))
    def write_by_hand(self, data, period, dollars):
        token = self.any_token(data)
        if token.is_deleted:
            return
        with self.db.write():
            self.db.run(
                "UPDATE client_tokens SET budget_period = ?, amount_spent = ? WHERE id = ?", (period, dollars, token.id)
            )
        token.period = period
        if dollars is not None:
            token.correct(dollars * DOLLAR - token.total(), self.clocks[0].now())
        assert self.store.get(token.id).period_spent_nanos == token.entered(self.clocks[0].now()).spent()

    @rule(data=st.data(), amount=st.integers(1, 200))
    def top_up(self, data, amount):
        token = self.any_token(data)
        if token.is_deleted or token.most is None:
            return
        spent = token.entered(self.clocks[0].now()).spent()
        was_spent, token.most = spent >= token.most, token.most + amount * TOKEN_PRICE
        assert self.store.top_up(token.id, amount * TOKEN_PRICE, actor=WE).revived == (was_spent and spent < token.most)

    @rule(data=st.data(), grace=st.sampled_from([0, 30, 3600, 86_400]))
    def rotate(self, data, grace):
        token = self.any_token(data)
        if token.is_deleted:
            return
        made = self.store.rotate(token.id, actor=WE, grace_seconds=grace)
        until = self.clocks[0].now() + timedelta(seconds=grace) if grace else DEAD
        token.secrets = [
            *((secret, DEAD) for secret, _ in token.secrets[:-1]),
            (token.secrets[-1][0], until),
            (made.secret, None),
        ]

    @rule(data=st.data(), sure=st.sampled_from([False, False, False, True]))
    def delete(self, data, sure):
        if sure:
            token = self.any_token(data)
            self.store.delete(token.id, actor=WE)
            token.is_deleted = True

    @rule(data=st.data(), rate=st.sampled_from([500, 1000, 2000]))
    def reprice(self, data, rate):
        load_rows(self.db, "file", [price(MODEL, input=str(rate), output=str(rate))], "2026-01-01T00:00:00.000000Z")
        self.token_price = rate * TOKEN_PRICE // 1000
        token = self.any_token(data)
        calls = [c for c in token.calls if not c.is_gone and c.report and c.report.source is Source.PROVIDER and c.report.usage]
        missing = {call.id: call.used * self.token_price - call.cost - call.corrected for call in calls}
        work = Repricing(self.db, self.clocks[0])
        wanted = Selection(since=DEAD, token_id=token.id)
        assert sum(found.difference_nanos for found in work.preview(wanted)) == sum(missing.values())
        if token.total() + sum(missing.values()) < 0:
            with pytest.raises(errors.FailedPrecondition):
                list(work.book(wanted, "why", actor=WE))
            return
        assert sum(found.difference_nanos for found in work.book(wanted, "why", actor=WE)) == sum(missing.values())
        if any(missing.values()):
            token.correct(sum(missing.values()), self.clocks[0].now())
        for call in calls:
            call.corrected += missing[call.id]
        assert not any(found.difference_nanos for found in work.preview(wanted))

    # -- what holds at any moment ----------------------------------------------------------------------------------------------

    @invariant()
    def the_books_agree(self):
        assert reconcile(self.db) == []

    @invariant()
    def the_figures_are_those_of_the_model(self):
        figures = "held_nanos, open_calls, total_spent_nanos, total_tokens, request_count"
        for token in self.tokens:
            [row] = self.db.query(f"SELECT {figures} FROM client_tokens WHERE id = ?", (token.id,))
            made = [call for call in token.calls if call.state == "settled"]
            assert row == (token.held(), len(token.open()), token.total(), sum(call.used for call in made), len(made))
            days: dict[str, int] = {}
            for call in token.calls:
                days[to_text(call.at)[:10]] = days.get(to_text(call.at)[:10], 0) + call.cost
            kept = self.db.query("SELECT day, SUM(cost_nanos) FROM daily_totals WHERE token_id = ? GROUP BY day", (token.id,))
            assert {day: int(cost) for day, cost in kept if cost} == {day: cost for day, cost in days.items() if cost}

    def teardown(self):
        for ledger in self.ledgers:
            ledger.close()
        for db in (self.db, *self.databases):
            db.close()
        self.folder.cleanup()


class PostgresBooksMachine(BooksMachine):
    """The same over PostgreSQL, where both processes write at once."""

    def make_url(self) -> str:
        return shared_server().create()

    def teardown(self):
        super().teardown()
        shared_server().drop(self.url)


class TestBooks(BooksMachine.TestCase):
    """A few seconds of it; give more examples to look for longer."""

    settings = settings(max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


class TestBooksOnPostgres(PostgresBooksMachine.TestCase):
    """Fewer, as each makes a database."""

    settings = settings(max_examples=4, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
