"""The services start in any order: none gives up, none refuses a caller for good, and all are ready soon after the last."""

from __future__ import annotations

import itertools
import json
import os
import time

import aiohttp
import pytest

from tests.suite.load import call
from tests.suite.stack import wait_for

ORDERS = list(itertools.permutations(("auth", "admin", "proxy")))
SOME = [("proxy", "admin", "auth"), ("admin", "auth", "proxy")]
READY = float(os.environ.get("GATEWAY_TEST_READY", "20"))  # seconds after the last part; 5 where no other tests run beside


@pytest.mark.parametrize("order", ORDERS if os.environ.get("GATEWAY_TEST_ORDERS") == "all" else SOME, ids="-".join)
async def test_services_start_in_any_order(fresh, order):
    suite = fresh(order[0], ready=False)
    async with aiohttp.ClientSession(trust_env=False) as session:
        for name in order[1:]:
            if suite.stack.processes.keys() >= {"proxy"} and "auth" not in suite.stack.processes:
                wait_for("the edge is up", lambda: suite.stack.status("/healthz") == 200)
                told = await call(session, suite.stack.base_url, "a-token-that-may-be-good", model="gpt-test")
                assert (told.status, told.code) == (503, "auth_unavailable")
            suite.stack.start(name)
        started = time.monotonic()
        suite.stack.wait_until_ready(READY)
        print("-".join(order), "ready after", round(time.monotonic() - started, 2), "s")  # shown by `pytest -rP`
        assert (await call(session, suite.stack.base_url, suite.token(), model="gpt-test")).whole
    assert all(process.poll() is None for process in suite.stack.processes.values())


@pytest.mark.parametrize("service", ["auth", "admin"])
def test_a_service_that_waits_for_its_database_says_so_and_stops_when_it_is_told_to(fresh, service):
    stack = fresh(ready=False, GATEWAY_DATABASE_URL="postgresql://gateway:secret-word@127.0.0.1:1/gateway").stack
    stack.start(service)
    (log,) = stack.logs.iterdir()
    wait_for("it says what it waits for", lambda: "127.0.0.1:1/gateway is away" in log.read_text())
    assert stack.stop(service) == 0  # and not -15: the first process of a container would not have heard the signal
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == [
        "waiting for the database",
        "stopped before it served",
    ]
    assert "secret-word" not in log.read_text()
