"""C13: an outbox that a crash or a disk has damaged costs the calls whose records are damaged, and no others."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from gateway.ids import uuid7
from tests.prove.scrape import Scrape
from tests.prove.site import Site
from tests.prove.test_crash_replay import admitted
from tests.proxy.outbox_harness import opened_record, report, settlement_record
from tests.suite.audit import open_holds
from tests.suite.load import calls
from tests.suite.stack import wait_for

CALLS = 5  # of each dead proxy: all are opened, then all are settled, so that the last three records are settlements
OUTPUT = 3  # tokens, by each settlement
EXACT, AT_HOLD = "settled provider", "settled estimated"


@dataclass
class Torn:
    """What one dead proxy left. `lost`: the calls whose settlement is damaged; `intact`: those whose is whole.

    bad: what is left of the damaged record.
    """

    what: str
    data: bytes
    bad: bytes
    intact: list[str]
    lost: list[str]


def torn_files(ids: list[list[str]], step: int, chance) -> list[Torn]:
    """One file for each way to cut the last record, and for each byte of the last three, flipped.

    ids: of admitted calls, `CALLS` for each file. step: only every so many of them.
    """
    opened, settled = len(opened_record(uuid7())), len(settlement_record(report(uuid7(), OUTPUT)))
    start = CALLS * (opened + settled)
    ways = [("cut", start - settled + length) for length in range(0, settled, step)]
    ways += [("flipped", position) for position in range(start - 3 * settled, start, step)]
    files = []
    for (what, position), calls_of_one in zip(ways, ids, strict=False):
        data = bytearray(b"".join(opened_record(one) for one in calls_of_one))
        data += b"".join(settlement_record(report(one, OUTPUT)) for one in calls_of_one)
        assert len(data) == start
        if what == "cut":
            del data[position:]
            hit = CALLS - 1
        else:
            data[position] ^= chance.randrange(1, 256)
            hit = (position - CALLS * opened) // settled
        lost, first = [calls_of_one[hit]], CALLS * opened + hit * settled
        bad = bytes(data[first : first + settled])
        files.append(Torn(f"{what} at {position}", bytes(data), bad, [one for one in calls_of_one if one not in lost], lost))
    return files


def states(site: Site) -> dict[str, str]:
    """What became of each call."""
    rows = site.stack.query("SELECT request_id, state, usage_source FROM requests")
    return {str(row["request_id"]): f"{row['state']} {row['usage_source']}" for row in rows}


@pytest.mark.proves("C13")
async def test_a_damaged_outbox_costs_its_damaged_records_and_no_others(site, proof):
    site = site(ready=False)
    stack, scrape, proxies = site.stack, Scrape(site), site.all_of("proxy")
    stack.start(*site.all_of("auth"))
    await asyncio.to_thread(stack.wait_until_up, *site.all_of("auth"))
    token = site.token(max_amount=1000)
    settled = len(settlement_record(report(uuid7(), OUTPUT)))
    # Relatively prime to the length of a record, so that other bytes are met in each of the three.
    step = proof.size(1, 11)
    count = len(range(0, settled, step)) + len(range(0, 3 * settled, step))
    ids = await asyncio.to_thread(admitted, stack, token, count * CALLS, uuid7())
    files = torn_files([ids[first : first + CALLS] for first in range(0, len(ids), CALLS)], step, proof.chance)
    outbox = stack.data / "outbox"
    outbox.mkdir(mode=0o700, exist_ok=True)
    left = []
    for file in files:
        path = outbox / f"{uuid7()}.log"
        path.write_bytes(file.data)
        left.append(path)
    proof.note("files, a record cut or a byte flipped in each", len(files))
    started = time.monotonic()
    stack.start(*proxies)
    stack.wait_until_ready(60)
    await asyncio.to_thread(wait_for, "all is reported", lambda: open_holds(stack.database) == 0, 60)
    proof.note("from the start of the proxy until all is reported", f"{time.monotonic() - started:.2f} s")
    became = states(site)
    proof.equals("undamaged settlements that were not booked as they stand",
        [file.what for file in files if any(became[one] != EXACT for one in file.intact)][:3], [])  # fmt: skip
    proof.equals("calls of a damaged settlement that were not charged their hold",
        [file.what for file in files if any(became[one] != AT_HOLD for one in file.lost)][:3], [])  # fmt: skip
    await asyncio.to_thread(wait_for, "their files are gone", lambda: not any(path.exists() for path in left), 30)
    damaged = sum(bool(file.bad) for file in files)
    aside = {path.name.removesuffix(".corrupt"): path.read_bytes() for path in outbox.glob("*.corrupt")}
    wrong = [file.what for file, path in zip(files, left, strict=True) if aside.get(path.name, b"") != file.bad]
    proof.equals("damaged files set aside", len(aside), damaged)
    proof.equals("set aside is something other than what is damaged", wrong[:3], [])
    proof.equals("the metric of damaged files", scrape.total("gateway_proxy_outbox_corrupt_total", *proxies), float(damaged))
    proof.equals("settlements refused", scrape.total("gateway_proxy_outbox_refused_total", *proxies), 0.0)
    [before] = stack.query("SELECT SUM(cost_nanos) AS cost FROM requests")
    for file in files[:: max(1, len(files) // 50)]:
        (outbox / f"{uuid7()}.log").write_bytes(file.data)  # as a backup that was laid back would do
    for name in proxies:
        proof.equals(f"{name} has not died", stack.processes[name].poll(), None)
        stack.kill(name)
    stack.start(*proxies)
    stack.wait_until_ready(60)
    await asyncio.to_thread(wait_for, "all files are read", lambda: len(list(outbox.glob("*.log"))) <= len(proxies), 60)
    [after] = stack.query("SELECT SUM(cost_nanos) AS cost FROM requests")
    proof.equals("charged once more when the same files are there again", after["cost"] - before["cost"], 0)
    for door in site.doors:
        [one] = await calls(door, token, 1, at_once=1, model="gpt-test")
        proof.equals("a call afterwards", one.status, 200)
    await asyncio.to_thread(wait_for, "nothing is open", lambda: open_holds(stack.database) == 0, 10)
    told = stack.gateway("reconcile", check=False).stdout.strip()
    proof.holds("gateway reconcile", told.splitlines()[-1], "0 differences", told.endswith("0 differences"))
