"""A service whose database is not there waits for it, says so, and still hears that it is to stop."""

from __future__ import annotations

import json

import pytest

from tests.suite.stack import wait_for


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
