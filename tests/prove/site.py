"""An installation under fire: where its calls go in, what watches its budgets, and how its books are held to account."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

from tests.fakes.balancer import Balancer
from tests.prove.proof import FULL, PATIENCE, Proof
from tests.prove.watch import BudgetWatch
from tests.suite.audit import Findings, Prices, audit, open_holds
from tests.suite.conftest import Installation
from tests.suite.load import Told
from tests.support.postgres import PostgresServer

QUIET = 5.0  # seconds after the last call within which no hold may be open
LEASE = 90.0  # seconds; 60 until a dead proxy's beat is missed, and the sweeper's own pace
SHORT_LEASE = (
    None if FULL else 12.0
)  # two beats of a proxy and a little, for tests with `is_forked=True` that do not have a minute


def outcomes(told: Iterable[Told]) -> Counter[str]:
    """How many calls ended how: by status and code; `cut` where an answer of 200 did not come to its end."""
    return Counter(f"{one.status} {one.code}".strip() if one.whole or one.status != 200 else "cut" for one in told)


class Site:
    """An installation, its doors and its books. `installation` has the stack, the provider and the tokens.

    server: the PostgreSQL server, where it is the test's own.
    """

    def __init__(self, installation: Installation, proof: Proof, replicas: int, server: PostgresServer | None = None) -> None:
        self.server = server
        self.installation, self.stack, self.provider = installation, installation.stack, installation.provider
        self._proof = proof
        self._replicas = replicas

    @staticmethod
    def names(service: str, replicas: int) -> list[str]:
        """What the processes of a service are called: there are replicas of auth and proxy only."""
        if service not in {"auth", "proxy"}:
            return [service]
        return [service, *(f"{service}-{number}" for number in range(2, replicas + 1))]

    def all_of(self, service: str) -> list[str]:
        """The processes of a service in this installation."""
        return self.names(service, self._replicas)

    @property
    def doors(self) -> list[str]:
        """The base URL of each proxy."""
        return [f"http://127.0.0.1:{self.stack.ports[name]}/v1" for name in self.all_of("proxy")]

    @contextlib.asynccontextmanager
    async def door(self) -> AsyncIterator[str]:
        """One base URL over all proxies: a balancer where there are two, as one would have."""
        if self._replicas == 1:
            yield self.stack.base_url
            return
        async with Balancer([self.stack.ports[name] for name in self.all_of("proxy")]) as balancer:
            yield balancer.base_url

    def token(self, **columns: object) -> str:
        """A new client token; its name is its secret."""
        return self.installation.token(**columns)

    @contextlib.contextmanager
    def watched(self) -> Any:
        """I7: reads every token's budget each 50 ms while the block runs."""
        with BudgetWatch(self.stack.database) as watch:
            yield watch
        with self._proof.aside():
            self._proof.holds("I7: samples", watch.samples, ">= 1", watch.samples >= 1)
            self._proof.equals("I7: samples above a budget", len(watch.above), 0)
            if watch.above:
                self._proof.note("I7: the first of them", watch.above[0])

    def settle(
        self, rates: Prices, told: Iterable[Told] = (), *, quiet: float = QUIET, estimates: int | None = 0, unreported: int = 0
    ) -> Findings:
        """Waits until no hold is open, compares all books, and puts what it found into the proof.

        told: what the callers saw; whoever had a whole answer must be charged exactly.
        estimates: how many rows may be estimated at the most; None: any number.
        """
        with self._proof.aside():
            return self._settle(rates, told, quiet, estimates, unreported)

    def _tell_late_from_never(self) -> None:
        """Whether holds that are open too long go away at all, and whose they are."""
        started = time.monotonic()
        while open_holds(self.stack.database) and time.monotonic() - started < LEASE:
            time.sleep(0.1)
        rows = self.stack.query(
            "SELECT request_id, proxy_id, admitted_at, user_agent FROM requests WHERE state = 'admitted' ORDER BY admitted_at"
        )
        self._proof.note("I6: they went after further", f"{time.monotonic() - started:.1f} s" if not rows else "never")
        if rows:
            beats = self.stack.query("SELECT * FROM proxies")
            self._proof.note("I6: still open, and the proxies", f"{rows[:3]}; {beats[-4:]}")

    def _settle(self, rates: Prices, told: Iterable[Told], quiet: float, estimates: int | None, unreported: int) -> Findings:
        proof, started = self._proof, time.monotonic()
        while open_holds(self.stack.database) and time.monotonic() - started < quiet * PATIENCE:
            time.sleep(0.05)
        proof.within("I6: quiet until no hold is open", time.monotonic() - started, quiet)
        left = open_holds(self.stack.database)
        proof.equals("I6: holds left open", left, 0)
        if left:
            self._tell_late_from_never()
        answered = {one.nonce for one in told if one.whole}
        findings = audit(self.stack.database, self.provider.ledger, rates, answered=answered)
        proof.note("calls upstream, rows, exact", f"{findings.accepted}, {findings.rows}, {findings.exact}")
        if estimates is not None:
            proof.at_most("rows estimated", findings.estimated, estimates)
        else:
            proof.note("rows estimated", findings.estimated)
        if findings.charged_without_call:
            proof.note("rows at the hold whose call was written down and not sent", findings.charged_without_call)
        proof.at_most("rows that nobody reported", findings.unreported, unreported)
        proof.equals("I1 to I6: what the books contradict", findings.problems[:3], [])
        told_last = (self.stack.gateway("reconcile", check=False).stdout.strip().splitlines() or ["nothing"])[-1]
        proof.holds("gateway reconcile", told_last, "0 differences", told_last.endswith("0 differences"))
        return findings
