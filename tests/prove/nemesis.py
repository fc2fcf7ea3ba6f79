"""What befalls services and databases: kill -9, standing still, restarts; by a seed, so that it can be had again.

Everything it does is bounded. `done` has it in order, each with its moment; `tell` puts it into the proof.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.prove.proof import Proof
from tests.suite.stack import Stack, wait_for
from tests.support.postgres import PostgresServer

STILL = 5.0  # seconds that a SIGSTOP lasts
BACK = 30.0  # seconds within which what was started must serve, or the test fails


class Nemesis:
    """Does things to an installation.

    chance: decides whom and when. server: the PostgreSQL server, where it is this test's own.
    """

    def __init__(self, stack: Stack, chance: random.Random, server: PostgresServer | None = None) -> None:
        self.stack, self.chance, self.server = stack, chance, server
        self.done: list[str] = []
        self.counts: Counter[str] = Counter()
        self._started = time.monotonic()

    def _note(self, what: str, whom: str) -> None:
        self.counts[f"{what} {whom.partition('-')[0]}"] += 1
        self.done.append(f"{time.monotonic() - self._started:8.3f} s  {what} {whom}")

    def tell(self, proof: Proof) -> None:
        """How often it did what, as a figure; every single thing on standard output, which pytest shows on failure."""
        proof.note("the nemesis", ", ".join(f"{count} x {what}" for what, count in sorted(self.counts.items())))
        print("\n".join(self.done))

    # -- processes -------------------------------------------------------------------------------------------------------------

    async def kill(self, name: str) -> None:
        """kill -9."""
        self._note("kill -9", name)
        await asyncio.to_thread(self.stack.kill, name)

    async def start(self, name: str) -> None:
        """Starts it, and waits until it serves."""
        self.stack.start(name)
        await self.serves(name)

    async def serves(self, name: str) -> None:
        """Waits until a service that runs takes calls."""
        await asyncio.to_thread(wait_for, f"{name} serves", lambda: self._is_there(name), seconds=BACK)

    def _is_there(self, name: str) -> bool:
        assert self.stack.processes[name].poll() is None, f"{name} died by itself\n{self.stack.log_tails()}"
        # A port tells more than readiness here: that depends on others, which may be away for reasons of their own.
        return self.stack.listens(self.stack.ports[name])

    async def stand_still(self, name: str, seconds: float = STILL) -> None:
        """SIGSTOP, and SIGCONT after so many seconds."""
        self._note("SIGSTOP", name)
        self.stack.pause(name)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.stack.go_on(name)

    async def restart(self, name: str) -> None:
        """SIGTERM, as in an upgrade, and a start when it has ended."""
        self._note("restart", name)
        await asyncio.to_thread(self.stack.stop, name)
        await self.start(name)

    async def kill_over_and_over(
        self,
        names: Sequence[str],
        count: int,
        *,
        between: tuple[float, float] = (0.2, 1.0),
        away: tuple[float, float] = (0.0, 0.3),
        before: Callable[[str], None] = lambda name: None,
    ) -> None:
        """So many times: waits, kills one of these, waits, starts it again.

        between: seconds that it serves before the next kill. away: seconds until it is started again. before: told whom it
        is about to kill.
        """
        for _ in range(count):
            await asyncio.sleep(self.chance.uniform(*between))
            name = self.chance.choice(names)
            before(name)
            await self.kill(name)
            await asyncio.sleep(self.chance.uniform(*away))
            await self.start(name)

    # -- the database ----------------------------------------------------------------------------------------------------------

    @property
    def _database(self) -> PostgresServer:
        assert self.server is not None, "only a server of the test's own may be broken"
        return self.server

    async def crash_database(self) -> None:
        """SIGQUIT: every process of it ends at once, as in a crash. It is started again, and recovers."""
        self._note("crash", "database")
        await asyncio.to_thread(self._database.stop, signal.SIGQUIT)
        await asyncio.to_thread(self._database.start)

    async def restart_database(self) -> None:
        """A fast shutdown, and a start."""
        self._note("restart", "database")
        await asyncio.to_thread(self._database.stop)
        await asyncio.to_thread(self._database.start)

    async def cut_database(self) -> None:
        """Ends every connection to the gateway's database."""
        self._note("cut", "database")
        await asyncio.to_thread(self._database.terminate_backends, str(self.stack.database))

    async def freeze_database(self, seconds: float = STILL) -> None:
        """SIGSTOP for the server and its backends, and SIGCONT after so many seconds."""
        self._note("SIGSTOP", "database")
        await asyncio.to_thread(self._database.stand_still)
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(self._database.go_on)

    # -- all of it -------------------------------------------------------------------------------------------------------------

    async def rage(self, names: Sequence[str], seconds: float, *, between: tuple[float, float] = (0.3, 2.0)) -> None:
        """For so many seconds: one thing after another, to one of these services or to the database, where it is ours."""
        acts: list[Callable[[], object]] = []
        for name in names:
            acts += [lambda name=name: self._killed_and_started(name)] * 4
            acts += [lambda name=name: self.stand_still(name), lambda name=name: self.restart(name)]
        if self.server is not None:
            acts += [self.crash_database] * 3 + [self.cut_database] * 3 + [self.restart_database, self.freeze_database]
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            await asyncio.sleep(self.chance.uniform(*between))
            await self.chance.choice(acts)()

    async def _killed_and_started(self, name: str) -> None:
        await self.kill(name)
        await asyncio.sleep(self.chance.uniform(0, 0.5))
        await self.start(name)
