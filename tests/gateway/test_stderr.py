"""What Python itself would print to standard error becomes lines of the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

STRAY = """
import asyncio, threading, warnings
from gateway.process import logs
from gateway.process.stderr import catch_stray

class Failing:
    def __del__(self):
        raise ValueError("in a destructor\\nof two lines")

logs.configure("info", None, "test")
catch_stray()
warnings.warn("mind the gap")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
Failing()

async def fails():
    asyncio.get_running_loop().create_task(asyncio.sleep(0)).add_done_callback(lambda task: {}["missing"])
    await asyncio.sleep(0.01)

asyncio.run(fails())
raise RuntimeError("at the end")
"""


def run(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=os.environ | settings, capture_output=True, text=True, check=False
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_warnings_and_whatever_nobody_caught_are_events_of_the_log():
    done = run("-c", STRAY)
    told = lines(done)
    assert done.returncode == 1
    text = json.dumps(told)
    for expected in ("mind the gap", "ZeroDivisionError", "in a destructor", "KeyError", "at the end"):
        assert expected in text, expected
    assert {line["service"] for line in told} == {"test"}
    assert next(line for line in told if line.get("thread") == "worker")["level"] == "error"


@pytest.mark.parametrize("service", ["auth", "admin", "proxy", "demo"])
def test_a_service_that_cannot_start_says_so_in_one_event(service: str, tmp_path: Path):
    settings = {"GATEWAY_DATA_DIR": str(tmp_path / "nothing"), "GATEWAY_LOG_LEVEL": "loud", "GATEWAY_DRIAN": "1"}
    done = run("-m", f"services.{service}", **settings)
    (line,) = lines(done)
    assert done.returncode == 1
    assert (line["event"], line["service"], line["level"]) == ("cannot start", service, "error")
    assert "GATEWAY_LOG_LEVEL" in line["fault"]
    assert "GATEWAY_DRIAN" in line["fault"]


def test_for_people_it_is_a_sentence(tmp_path: Path):
    done = run("-m", "services.auth", GATEWAY_DATA_DIR=str(tmp_path / "nothing"), GATEWAY_LOG_FORMAT="console")
    assert done.returncode == 1
    assert done.stderr.startswith("auth: ")
