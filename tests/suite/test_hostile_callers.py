"""The hostile callers of `benchmarks.hostile`, all at once for a few seconds: nothing fails, and everything comes back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import aiohttp
import psutil

from benchmarks.hostile import KINDS
from tests.suite.load import call
from tests.suite.stack import REPOSITORY, wait_for

SECONDS = 5.0
LEFT_OVER = 8
"""Files more than before: connections to the provider that are kept."""


def test_hostile_callers_get_no_500_and_all_their_sockets_are_returned(fresh):
    made = fresh("auth", "proxy", "admin")
    stack, token, hostile = made.stack, made.token(), made.token()
    proxy = psutil.Process(stack.processes["proxy"].pid)
    files = proxy.num_fds()
    order = {"port": stack.http_port, "token": hostile, "model": "mock-plain", "stream_model": "mock-plain", "seconds": SECONDS}
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.hostile", json.dumps(order | {"kinds": list(KINDS)})],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    done = json.loads(told.stdout)
    assert all(done[kind] for kind in KINDS), done
    assert not any(statuses.get("500") for statuses in done.values()), done
    wait_for("the sockets are returned", lambda: proxy.num_fds() <= files + LEFT_OVER, seconds=30)
    log = "".join(path.read_text() for path in stack.logs.iterdir())
    assert "Traceback" not in log
    assert "request_failed" not in log
    assert asyncio.run(_status(stack.base_url, token)) == 200


async def _status(base_url: str, token: str) -> int:
    async with aiohttp.ClientSession() as session:
        return (await call(session, base_url, token, model="mock-plain")).status
