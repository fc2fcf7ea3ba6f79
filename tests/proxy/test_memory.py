"""No body outlives its call, however the call ends: memory comes back at once, without the collector's help."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from gateway.errors import BudgetExhausted, RateLimited
from services.proxy.dialects.openai import ChatCall
from services.proxy.strict_json import Document
from services.proxy.ticket import Ticket
from services.proxy.upstream import Sending
from tests.proxy.edge_harness import Edge, chat, running_edge, until

CALLS = 5
HOLD_BODIES = (Document, ChatCall, Ticket, Sending)
FAULTS = [
    "status-400",
    "status-401",
    "status-429",
    "status-500",
    "status-503",
    "reset",
    "close",
    "silent",
    "headers-only",
    "html",
]
FAULTS += ["no-content", "bad-chunk", "bad-json", "bad-gzip", "cut", "short", "hang", "redirect", "huge-header", "plain"]


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running_edge(upstream_timeouts=(0.3, 0.3, 0.3)) as running:
        yield running


@pytest.fixture
def uncollected() -> Iterator[None]:
    """The collector does not come."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> Counter[str]:
    """How many objects there are of the kinds that hold a body."""
    return Counter(type(found).__name__ for found in gc.get_objects() if type(found) in HOLD_BODIES)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_no_body_outlives_a_call_that_the_provider_spoils(
    edge: Edge, uncollected: None, fault: str, stream: bool
) -> None:
    before = alive()
    for _ in range(CALLS):
        async with edge.post(chat(f"mock-{fault}", "x" * 10_000, stream=stream)) as response:
            await response.read()
    await asyncio.sleep(0.05)
    assert alive() - before == Counter()


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (chat(), BudgetExhausted("spent")),
        (chat(), RateLimited("too many", retry_after=1.0)),
        (chat("not-served"), None),
        (chat(n="x"), None),
        ({"model": "mock", "messages": []}, None),
    ],
)
async def test_no_body_outlives_a_call_that_is_refused_here(
    edge: Edge, uncollected: None, body: dict[str, object], refusal: Exception | None
) -> None:
    edge.auth.refusal = refusal  # type: ignore[assignment]
    before = alive()
    for _ in range(CALLS):
        async with edge.post(body | {"pad": "x" * 10_000}) as response:
            assert response.status >= 400
    await asyncio.sleep(0.05)
    assert alive() - before == Counter()


async def test_no_body_outlives_a_caller_who_left(edge: Edge, uncollected: None) -> None:
    before = alive()
    for stream in (False, True):
        for _ in range(CALLS):
            with pytest.raises((TimeoutError, aiohttp.ClientError)):
                async with asyncio.timeout(0.1), edge.post(chat("mock", "seconds:2", stream=stream)) as response:
                    await response.read()
    await until(lambda: len(edge.outbox.settlements) == 2 * CALLS)
    await asyncio.sleep(0.05)
    assert alive() - before == Counter()
