"""C18: the outbox's disk fails, and then the proxy is killed: what was answered is charged, what was refused is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.prove.site import LEASE, Site, outcomes
from tests.suite.audit import Prices
from tests.suite.load import Told, paced_calls
from tests.support.disks import failing_calls

RATES = Prices(input="1.00", output="2.00")
FAULTS = [("write", "EIO"), ("write", "ENOSPC"), ("fdatasync", "EIO")]


def outbox_files(site: Site) -> list[Path]:
    """The files of all outboxes, those that may come with them."""
    folder = site.stack.data / "outbox"
    stems = [path.stem for path in folder.glob("*.log")]
    names = [f"{stem}.log" for stem in stems] + [f".probe-{stem}.new" for stem in stems]
    names += [
        f"{before}{stem}.{number}.log{behind}"
        for stem in stems
        for number in range(1, 9)
        for before, behind in (("", ""), (".", ".new"))
    ]
    return [folder / name for name in names]


async def load(site: Site, token: str, until: Callable[[], bool]) -> list[Told]:
    """Calls and streams of a second, and calls that the provider refuses, at a steady pace."""
    async with site.door() as door:
        kinds = [
            {"model": "gpt-test", "prompt": "unique:1 tokens:20 chunks:10 seconds:1"},
            {"model": "mock-status-400", "prompt": "unique:1"},
        ]
        told = await asyncio.gather(
            *(paced_calls(door, token, a_second=10, until=until, connections=50, **kind) for kind in kinds)
        )
    return [one for each in told for one in each]


@pytest.mark.proves("C18")
@pytest.mark.parametrize(("calls", "error"), FAULTS, ids=lambda value: value)
async def test_answered_calls_are_charged_and_refused_ones_are_not(site, proof, calls, error):
    site = site("auth", "proxy")
    token, over = site.token(max_amount=1000), asyncio.Event()
    running = asyncio.create_task(load(site, token, over.is_set))
    await asyncio.sleep(1.5)
    processes = [site.stack.processes[name].pid for name in site.all_of("proxy")]
    with contextlib.ExitStack() as failing:
        await asyncio.to_thread(failing.enter_context, failing_calls(processes, outbox_files(site), calls, error))
        await asyncio.sleep(proof.size(10, 2))
        for name in site.all_of("proxy"):
            site.stack.kill(name)  # in the middle of it: whoever had the end of an answer had its settlement kept before
    over.set()
    told = await running
    site.stack.start(*site.all_of("proxy"))
    site.stack.wait_until_ready(60)
    counts = outcomes(told)
    refused = {one.nonce for one in told if one.status == 400}
    proof.note("outcomes", dict(counts))
    proof.at_least("calls answered", counts["200"], 1)
    proof.at_least("calls that the provider refused", len(refused), 1)
    proof.only("statuses", Counter(f"{one.status}" for one in told), {"200", "400", "503", "0"})
    site.settle(RATES, told, quiet=LEASE, estimates=None)
    charged = [row for row in site.installation.calls(token) if row["cost_nanos"] and str(row["user_agent"])[-32:] in refused]
    proof.equals("refused calls that were charged", len(charged), 0)
