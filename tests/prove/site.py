"""An installation under fire: where its calls go in, what watches its budgets, and how its books are held to account."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.balancer import Balancer
from tests.prove.proof import FULL, PATIENCE, Proof
from tests.prove.watch import BudgetWatch
from tests.suite.audit import Findings, Prices, audit, open_holds
from tests.suite.conftest import Installation
from tests.suite.load import Told
from tests.support.postgres import PostgresServer

QUIET = 5.0  # seconds after the last call within which no hold may be open
METRICS = 10.0  # seconds; twice the pace at which auth counts what its ledger tells of itself
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

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series with these labels, over all auths."""
        total = 0.0
        for auth in self.all_of("auth"):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.stack.probe_ports[auth]}/metrics", timeout=10) as answer:
                families = text_string_to_metric_families(answer.read().decode())
            total += sum(
                sample.value
                for family in families
                for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            )
        return total

    def token(self, **columns: object) -> str:
        """A new client token; its name is its secret."""
        return self.installation.token(**columns)

    def metric_once(self, name: str, expected: float, **labels: str) -> float:
        """The metric as soon as it is so large; else as it is after a while. What the ledger tells comes every few seconds."""
        deadline = time.monotonic() + METRICS * PATIENCE
        while (value := self.metric(name, **labels)) < expected and time.monotonic() < deadline:
            time.sleep(0.1)
        return value

    def row(self, token: str) -> dict[str, Any]:
        """The database's row of a token that `token` made."""
        return self.installation.row(token)

    def crashes(self) -> list[str]:
        """The logs that tell of an exception that nobody expected, and the processes that are not there any more."""
        logs = [log.name for log in sorted(self.stack.logs.iterdir()) if "Traceback" in log.read_text(errors="replace")]
        return logs + [name for name, process in self.stack.processes.items() if process.poll() is not None]

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
        self,
        rates: Prices,
        told: Iterable[Told] = (),
        *,
        quiet: float = QUIET,
        estimates: int | None = 0,
        unreported: int = 0,
        capped: bool = True,
    ) -> Findings:
        """Waits until no hold is open, compares all books, and puts what it found into the proof.

        told: what the callers saw; whoever had a whole answer must be charged exactly.
        estimates: how many rows may be estimated at the most; None: any number.
        capped: whether every strict budget must be kept (I7); not where a provider bills more than its own limit.
        """
        with self._proof.aside():
            return self._settle(rates, told, quiet, estimates, unreported, capped)

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

    def _settle(
        self, rates: Prices, told: Iterable[Told], quiet: float, estimates: int | None, unreported: int, capped: bool
    ) -> Findings:
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
        wrong = [problem for problem in findings.problems if capped or not problem.startswith("I7")]
        proof.equals("I1 to I6: what the books contradict", wrong[:3], [])
        self.reconcile()
        return findings

    def reconcile(self) -> None:
        """Has the gateway compare its own books, and puts what it says into the proof."""
        told = (self.stack.gateway("reconcile", check=False).stdout.strip().splitlines() or ["nothing"])[-1]
        self._proof.holds("gateway reconcile", told, "0 differences", told.endswith("0 differences"))
