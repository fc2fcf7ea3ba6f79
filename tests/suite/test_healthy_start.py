"""A healthy start tells of no fault."""

from __future__ import annotations

import json
import time


def test_services_that_start_together_log_no_warning_and_no_unavailable_auth(fresh):
    made = fresh("auth", "proxy", "admin")
    time.sleep(1.0)  # what tells of a fault does so within the first second
    lines = [json.loads(line) for path in made.stack.logs.iterdir() for line in path.read_text().splitlines()]
    assert [line for line in lines if line["level"] in {"warning", "error"} or "AUTH_UNAVAILABLE" in str(line)] == []
