"""Any order of admissions, settlements, repeats, expiries and crashes keeps the ledger's invariants."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from gateway.admission import Admitted
from gateway.ids import uuid7
from gateway.storage.reconcile import reconcile
from gateway.usage import Outcome, Source
from tests.support.ledger import DOLLAR, PROXY, add_token, admission, make_database, open_ledger, released, settled


class LedgerMachine(RuleBasedStateMachine):
    """One strict token of a dollar, one ledger, and everything that can happen to them."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.db = make_database(Path(self.folder.name))
        add_token(self.db)
        self.ledger = open_ledger(self.db)
        self.reports: dict[str, object] = {}
        self.costs: dict[str, int] = {}

    @rule(target=ids, limit=st.none() | st.integers(1, 400), read=st.integers(0, 300))
    def admit(self, limit, read):
        asked = admission(limit=limit, read=read)
        (answer,) = self.ledger.commit([], [asked]).admissions
        if not isinstance(answer, Admitted):
            return multiple()
        (again,) = self.ledger.commit([], [asked]).admissions
        assert again == answer
        return asked.request_id

    @rule(request_id=ids, share=st.floats(0, 1), source=st.sampled_from([Source.PROVIDER, Source.ESTIMATED]))
    def settle(self, request_id, share, source):
        """Usage within what was granted, as an honest provider tells it."""
        ((held,),) = self.db.query("SELECT held_nanos FROM requests WHERE request_id = ?", (request_id,))
        tokens = int(held // (DOLLAR // 1000) * share)
        self._report(settled(request_id, read=0, written=tokens, source=source))

    @rule(request_id=ids)
    def settle_at_hold(self, request_id):
        self._report(settled(request_id, outcome=Outcome.SETTLED_AT_HOLD, usage={}))

    @rule(request_id=ids)
    def release(self, request_id):
        self._report(released(request_id))

    @rule(request_id=ids)
    def repeat(self, request_id):
        if request_id in self.reports:
            answers = self.ledger.commit([self.reports[request_id]] * 3, []).settlements
            assert [answer.cost_nanos for answer in answers] == [self.costs[request_id]] * 3

    @rule()
    def expire(self):
        self.ledger.expire(proxy_id=PROXY)

    @rule()
    def withdraw_unseen(self):
        request_id = uuid7()
        outcome = self.ledger.commit([released(request_id)], [admission(request_id)])
        assert not isinstance(outcome.admissions[0], Admitted)

    @rule()
    def crash(self):
        """The process is gone and another one opens the same file."""
        self.ledger = open_ledger(self.db)

    def _report(self, report):
        (answer,) = self.ledger.commit([report], []).settlements
        if report.request_id not in self.reports:
            self.reports[report.request_id] = report
            self.costs[report.request_id] = answer.cost_nanos

    @invariant()
    def the_books_agree(self):
        assert reconcile(self.db) == []

    @invariant()
    def the_budget_holds(self):
        ((spent, held),) = self.db.query("SELECT period_spent_nanos, held_nanos FROM client_tokens")
        assert held >= 0
        assert spent + held <= DOLLAR

    def teardown(self):
        self.ledger.close()
        self.db.close()
        self.folder.cleanup()


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
