"""PostgreSQL restarts, crashes or cuts everybody off: calls wait or get 503 meanwhile, and the books stay exact."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.suite.audit import audit, open_holds
from tests.suite.conftest import ADMIN_PASSWORD, RATES, Installation, install, toml
from tests.suite.load import call, steady_calls
from tests.suite.stack import Stack, wait_for
from tests.support.postgres import PostgresServer

BOUNCES = int(os.environ.get("GATEWAY_TEST_BOUNCES", "2"))  # the full run: 20
CUTS = int(os.environ.get("GATEWAY_TEST_CUTS", "3"))  # the full run: 50
AWAY = float(os.environ.get("GATEWAY_TEST_AWAY", "1"))  # seconds without a database at the start; the full run: 30
HEALED = 5.0  # seconds


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of the test's own, as others must not notice what happens to it."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def made_here(tmp_path: Path, server: PostgresServer) -> tuple[Path, str]:
    """What `gateway init` leaves, and the URL of its database."""
    (tmp_path / "made").mkdir()
    url = server.create()
    settings = {"GATEWAY_ADMIN_PASSWORD": ADMIN_PASSWORD, "GATEWAY_DATABASE_URL": url}
    with Stack(tmp_path / "made", toml("http://127.0.0.1:9/v1"), settings) as stack:
        stack.gateway("init")
    return tmp_path / "made" / "data", url


async def heal(suite: Installation, token: str) -> float:
    """Seconds until a call succeeds."""
    started = time.monotonic()
    async with aiohttp.ClientSession(trust_env=False) as session:
        while not (await call(session, suite.stack.base_url, token, model="gpt-test", prompt="unique:1 tokens:5")).whole:
            assert time.monotonic() - started < 3 * HEALED, suite.stack.log_tails()
    return time.monotonic() - started


@pytest.mark.timeout(120 + 15 * BOUNCES + 5 * CUTS)
async def test_a_database_that_crashes_or_cuts_its_connections_costs_a_moment_and_nothing_else(tmp_path, server, made_here):
    made, url = made_here
    running = install(tmp_path / "here", made, "auth", "auth-2", "proxy", replicas=2, GATEWAY_DATABASE_URL=url)
    suite = next(running)
    token = suite.token(max_amount=1000)
    healed: list[float] = []
    over = False

    async def nemesis() -> None:
        nonlocal over
        for _ in range(BOUNCES):
            await asyncio.sleep(1)
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            await asyncio.to_thread(server.start)
            healed.append(await heal(suite, token))
        for _ in range(CUTS):
            await asyncio.sleep(0.3)
            assert await asyncio.to_thread(server.terminate_backends, url) > 0
            healed.append(await heal(suite, token))
        over = True

    told, _ = await asyncio.gather(
        steady_calls(
            suite.stack.base_url,
            token,
            at_once=20,
            until=lambda: over,
            streams="unique:1 tokens:20 chunks:20 seconds:1",
            plain="unique:1 tokens:8 seconds:0.1",
            model="gpt-test",
        ),
        nemesis(),
    )
    statuses = Counter(f"{one.status} {one.code}" for one in told)
    print(statuses, "healed after", [round(seconds, 2) for seconds in healed])  # shown by `pytest -rP`
    assert set(statuses) <= {"200 ", "503 auth_unavailable"}, suite.stack.log_tails()
    assert all(one.whole for one in told if one.status == 200)
    assert max(healed) <= HEALED
    wait_for("no hold is open", lambda: open_holds(suite.stack.database) == 0, seconds=15)
    answered = {one.nonce for one in told if one.whole}
    findings = audit(suite.stack.database, suite.provider.ledger, RATES, answered=answered)
    assert findings.problems == [], f"{findings}\n{suite.stack.log_tails()}"
    assert (findings.unreported, findings.estimated) == (0, 0)
    assert suite.stack.gateway("reconcile").stdout.strip().endswith("0 differences")
    next(running, None)


async def test_everything_may_start_before_the_database_is_there(tmp_path, server, made_here):
    made, url = made_here
    server.stop()
    running = install(
        tmp_path / "here", made, "proxy", "admin", "auth", "auth-2", replicas=2, ready=False, GATEWAY_DATABASE_URL=url
    )
    suite = next(running)
    wait_for("the edge is up", lambda: suite.stack.status("/healthz") == 200)
    until = time.monotonic() + AWAY
    async with aiohttp.ClientSession(trust_env=False) as session:
        while time.monotonic() < until:
            told = await call(session, suite.stack.base_url, "a-token-that-may-be-good", model="gpt-test")
            assert (told.status, told.code) == (503, "auth_unavailable")
            assert suite.stack.status("/readyz") == 503
    assert all(process.poll() is None for process in suite.stack.processes.values()), suite.stack.log_tails()
    await asyncio.to_thread(server.start)
    back = time.monotonic()
    suite.stack.wait_until_ready(HEALED)
    print("ready", round(time.monotonic() - back, 2), "s after the database")  # shown by `pytest -rP`
    assert await heal(suite, suite.token()) < 1
    next(running, None)
