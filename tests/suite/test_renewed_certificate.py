"""The proxy takes over a renewed certificate while it runs: nothing is lost, and what ended with the old one goes on."""

from __future__ import annotations

import asyncio
import time

import aiohttp

from gateway.rpc.identity import issue
from tests.suite.conftest import ADMIN_PASSWORD
from tests.suite.load import calls, paced_calls
from tests.suite.stack import wait_for

GOOD_FOR = 12.0  # seconds


async def test_the_proxy_goes_on_with_a_renewed_certificate_when_the_old_one_has_ended(fresh):
    made = fresh(ready=False)
    stack, pki = made.stack, made.stack.data / "pki"
    issue(pki / "ca", "proxy", pki / "proxy", days=GOOD_FOR / 86_400)
    ends = time.monotonic() + GOOD_FOR
    stack.start("auth", "admin", "proxy")
    stack.wait_until_ready()
    token, over = made.token(), asyncio.Event()
    load = asyncio.create_task(paced_calls(stack.base_url, token, a_second=20, until=over.is_set, model="mock-plain"))
    stream = asyncio.create_task(
        calls(stack.base_url, token, 1, at_once=1, model="mock-plain", stream=True, prompt="tokens:20 chunks:20 seconds:6")
    )
    await asyncio.sleep(0.5)
    issue(pki / "ca", "proxy", pki / "proxy")
    await asyncio.sleep(3)
    over.set()
    told = [*await load, *await stream]
    assert {(one.status, one.whole) for one in told} == {(200, True)}
    await asyncio.sleep(max(0.0, ends - time.monotonic()) + 0.5)
    for service in ("auth", "admin"):  # each connection is made anew, and the old certificate is none any more
        stack.kill(service)
    stack.start("auth", "admin")
    wait_for("auth", lambda: stack.is_ready("auth"))  # by then the proxy has noticed that it was away
    stack.wait_until_ready()
    assert [one.status for one in await calls(stack.base_url, token, 5, at_once=1, model="mock-plain")] == [200] * 5
    base, login = stack.base_url.removesuffix("/v1"), {"username": "admin", "password": ADMIN_PASSWORD}
    async with aiohttp.ClientSession() as session, session.post(f"{base}/auth/login", json=login) as answer:
        assert answer.status == 200
