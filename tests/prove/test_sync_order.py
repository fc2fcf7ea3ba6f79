"""C14: what a call rests on is on the disk before the call is made, and what is still to be told is kept until it is booked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime

import psutil
import psycopg
import pytest

from tests.prove.site import Site, outcomes
from tests.suite.conftest import RATES
from tests.suite.load import calls
from tests.suite.stack import wait_for
from tests.support.postgres import PostgresServer
from tests.support.tracing import SystemCall, Trace, traced

WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg")


class Order:
    """What happened before what, from the traces of whoever writes the log of the database and of the proxies."""

    def __init__(self, ledger: Trace, proxy: Trace, log: str) -> None:
        self.log_writes = ledger.of(*WRITES, holding=log)
        self.syncs = ledger.of("fdatasync", "fsync", holding=log)
        self.upstream = [call for call in proxy.of(*WRITES, holding="<TCP:") if "POST /v1/chat/completions" in call.text]
        self.appended = proxy.of(*WRITES, holding="/outbox/")
        self.outbox_syncs = proxy.of("fdatasync", "fsync", holding="/outbox/")
        removed = proxy.of("unlink", "unlinkat", "ftruncate", "rename", holding="/outbox/")
        self.removed = [call for call in removed if ".new" not in call.text]

    def sent(self, nonce: str) -> SystemCall | None:
        """The first write of a call to the provider."""
        return next((call for call in self.upstream if nonce in call.text), None)

    def synced_after(self, began: float) -> float | None:
        """When the first sync of the log was over that began after a moment."""
        return min((call.ended for call in self.syncs if call.began >= began), default=None)

    def logged(self, *texts: str) -> float | None:
        """When one of these was first written into the log. Any one may be cut in two there, by the end of a page."""
        return next((call.ended for call in self.log_writes if any(text in call.text for text in texts)), None)

    def record(self, kind: str, request_id: str) -> float | None:
        """When the first record of a kind about a call was begun to be written into the outbox."""
        return next((call.began for call in self.appended if kind in call.text and request_id in call.text), None)


def judge(site: Site, proof, order: Order, nonces: list[str]) -> None:
    """Compares the times of each call."""
    rows = {str(row["user_agent"]).removeprefix("nonce/"): row for row in site.stack.query("SELECT * FROM requests")}
    early, unsynced, unbooked, ahead, gaps = [], [], [], [], []
    for nonce in nonces:
        row, sent = rows[nonce], order.sent(nonce)
        logged = order.logged(nonce, str(row["request_id"]))
        synced = None if logged is None else order.synced_after(logged)
        if sent is None or synced is None or synced >= sent.began:
            early.append(f"{nonce}: in the log {logged}, synced {synced}, sent {sent and sent.began}")
        else:
            gaps.append(sent.began - synced)
        opened = order.record("gz1o", str(row["request_id"]))
        if opened is None or sent is None or opened >= sent.began:
            ahead.append(nonce)
        settled = order.record("gz1s", str(row["request_id"]))
        finished = order.record("gz1a", str(row["request_id"]))
        booked = order.synced_after(datetime.fromisoformat(str(row["settled_at"])).timestamp())
        if finished is None or booked is None or finished <= booked:
            unbooked.append(f"{nonce}: booked on the disk {booked}, given up {finished}")
        # A record that was acknowledged before the next sync was due needs none.
        if settled is None or not any(call.began >= settled for call in order.outbox_syncs):
            unsynced.append(nonce)
    proof.equals(f"of {len(nonces)} calls sent before their row was synced", len(early), 0)
    proof.equals("calls sent before the outbox said so", ahead[:2], [])
    proof.equals("outbox records given up before their commit was synced", len(unbooked), 0)
    proof.equals("settlements in the outbox that were never synced", unsynced[:2], [])
    proof.note("least time from sync to the first byte upstream", f"{1000 * min(gaps, default=0.0):.2f} ms")
    for what in (early, unbooked):
        if what:
            proof.note("the first of them", what[0])
    last = max(call.began for call in order.appended if "gz1a" in call.text)
    proof.equals("files of the outbox cut or removed before the last was booked", sum(c.began < last for c in order.removed), 0)
    proof.at_least("files of the outbox removed once all was booked", len(order.removed), 1)
    proof.at_least("syncs of the database's log", len(order.syncs), len(nonces) // 8)


async def traced_calls(site: Site, proof, tmp_path, writers: Callable[[], list[int]], log: str) -> Order:
    """Makes the calls under strace, stops the proxies, and gives what happened in which order."""
    stack, proxies = site.stack, site.all_of("proxy")
    token, count = site.token(max_amount=1000), proof.size(100)
    for door in site.doors:
        await calls(door, token, 2, at_once=2, model="gpt-test")
    with ExitStack() as both:
        ledger = both.enter_context(traced(writers(), tmp_path / "ledger.strace"))
        proxy = both.enter_context(traced([stack.processes[name].pid for name in proxies], tmp_path / "proxy.strace"))
        told = []
        for turn, door in enumerate(site.doors):
            share = count // len(site.doors) + (turn < count % len(site.doors))
            told += await calls(door, token, share, at_once=4, model="gpt-test", prompt="unique:1 tokens:5")
        proof.only("outcomes", outcomes(told), {"200"})
        [row] = stack.query("SELECT id FROM client_tokens WHERE name = ?", token)
        sql = "SELECT COUNT(*) AS n FROM requests WHERE token_id = ? AND state = 'admitted'"
        wait_for("all is reported", lambda: stack.query(sql, row["id"])[0]["n"] == 0, seconds=20)
        await asyncio.sleep(1)  # the acknowledgement is written without being waited for
        for name in proxies:
            stack.processes[name].terminate()
        for name in proxies:
            stack.processes[name].wait(30)
    order = Order(ledger, proxy, log)
    judge(site, proof, order, [one.nonce for one in told])
    site.settle(RATES, told)
    return order


@pytest.mark.proves("C14")
async def test_a_row_is_on_the_disk_before_its_call_goes_out_and_a_record_stays_until_it_is_booked(
    site, proof, database, tmp_path
):
    if database == "sqlite":
        site = site("auth", "proxy")
        await traced_calls(site, proof, tmp_path, lambda: [site.stack.processes["auth"].pid], "gateway.db-wal")
        return
    server = PostgresServer(synced=True)
    try:
        site = site(ready=False)
        url = server.create()
        site.stack.environment["GATEWAY_DATABASE_URL"] = url
        site.stack.gateway("migrate")
        site.stack.start(*site.all_of("auth"), *site.all_of("proxy"))
        site.stack.wait_until_ready(60)

        def backends() -> list[int]:
            return [server.pid, *(child.pid for child in psutil.Process(server.pid).children())]

        await traced_calls(site, proof, tmp_path, backends, "/pg_wal/")
        with psycopg.connect(url) as connection:
            for setting in ("synchronous_commit", "fsync"):
                [value] = connection.execute(f"SHOW {setting}").fetchone() or [None]
                proof.equals(setting, value, "on")
    finally:
        site.stack.close()
        server.close()
