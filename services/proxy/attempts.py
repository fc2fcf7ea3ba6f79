"""Attempts at the providers until one answers: where next, how often, how soon. All of it before the first byte of an answer.

An attempt that was not sent, or that got an error status, cost nothing, so the same admission serves another one; one that went
out and was never answered may have cost something, and is the last. At most `MOST` attempts a call, and over all calls at most
one retry to five calls, so that a provider in trouble is not called more than it must.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from gateway.errors import GatewayError, UpstreamError, UpstreamTimeout
from gateway.process.logs import get_logger
from services.proxy.providers.base import MAX_ERROR, Failure, ProviderRefused, Target
from services.proxy.providers.keys import Key
from services.proxy.ticket import Ticket
from services.proxy.upstream import BrokenOff, NoStatus, NotSent, Reply, Sending, Upstream, UpstreamFailure

MOST = 3
"""Attempts for one call."""
EARNED = 0.2
"""Retries that each call adds to what may be spent."""
SAVED = 10.0
"""Retries that can be saved up."""
PAUSE = 0.2
"""Seconds before an attempt at the same place, doubled each time and spread by half to one and a half."""

_log = get_logger(__name__)


class RetryBudget:
    """How many retries are left, over all calls."""

    def __init__(self) -> None:
        self._left = SAVED

    def earn(self) -> None:
        """Notes a call."""
        self._left = min(SAVED, self._left + EARNED)

    def spend(self) -> bool:
        """Takes one retry, if there is one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Attempts:
    """Sends calls, again where that makes sense."""

    def __init__(self, *, upstream: Upstream) -> None:
        self._upstream = upstream
        self._budget = RetryBudget()

    async def open(self, ticket: Ticket, targets: Sequence[Target]) -> tuple[Reply, Target]:
        """The answer with status 200, and who gave it.

        targets: where the call may go, the first choice first. Raises UpstreamCredentials, UpstreamError, UpstreamTimeout,
        ProviderRefused.
        """
        self._budget.earn()
        place = 0
        for number in range(1, MOST + 1):
            target = targets[place]
            reply, failure = await self._attempt(ticket, target)
            if reply is not None:
                return reply, target
            assert failure is not None
            pause = 0.0
            if failure.again and place + 1 < len(targets):
                place += 1
            elif failure.same_place:
                pause = PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
            elif not (failure.again and target.provider.keys.has_fresh()):
                raise failure.told
            if number == MOST or not self._budget.spend():
                raise failure.told
            if pause:
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, ticket: Ticket, target: Target) -> tuple[Reply, None] | tuple[None, Failure]:
        provider = target.provider
        key = provider.keys.take()
        sending = Sending(ticket.call.upstream_body(target.model, _granted(ticket), provider.limit_parameter))
        ticket.attempt(target, sending)
        try:
            reply = await self._upstream.send(provider.chat_url, provider.headers(key, stream=ticket.call.stream), sending)
        except NotSent as failure:
            provider.failed()
            told = _told(ticket, failure)
            ticket.failed("not_sent")
            return None, Failure(told, again=True, same_place=not failure.late)
        except NoStatus as failure:
            provider.failed()
            told = _told(ticket, failure)
            ticket.failed(told_code(told))
            raise told from failure
        if reply.status == 200:
            provider.answered()
            return reply, None
        return None, await self._refused(ticket, target, reply, key)

    async def _refused(self, ticket: Ticket, target: Target, reply: Reply, key: Key | None) -> Failure:
        """What an answer with another status means."""
        try:
            if 200 <= reply.status < 300:
                # An answer, though an unreadable one: the provider may charge for it, so it is charged by what is known of it.
                ticket.answered(reply.status, ticket.new_meter())
                ticket.error_code = "upstream_error"
                raise UpstreamError(f"The provider {target.provider.name} answered without content.")
            body = await _beginning(reply)
            failure = target.provider.classify(reply.status, reply.headers, body, key)
            ticket.failed(told_code(failure.told), reply.status)
            return failure
        finally:
            reply.close()


def _granted(ticket: Ticket) -> int | None:
    return ticket.grant.max_output_tokens if ticket.grant.HasField("max_output_tokens") else None


async def _beginning(reply: Reply) -> bytes:
    """The body of an error, as much of it as is read."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(10.0):
            while size < MAX_ERROR and (data := await reply.read()):
                parts.append(data)
                size += len(data)
    except (BrokenOff, TimeoutError):
        pass  # the status is enough
    return b"".join(parts)[:MAX_ERROR]


def _told(ticket: Ticket, failure: UpstreamFailure) -> GatewayError:
    """What the caller is told of a failure of the network; the log has more."""
    assert ticket.target is not None
    name = ticket.target.provider.name
    _log.warning("upstream_failed", request_id=ticket.request_id, provider=name, error=str(failure))
    if failure.late:
        return UpstreamTimeout(f"The provider {name} did not answer in time.")
    return UpstreamError(f"The provider {name} cannot be reached.")


def told_code(told: GatewayError | ProviderRefused) -> str:
    """The `error_code` of a settlement."""
    return f"upstream_{told.relayed.status}" if isinstance(told, ProviderRefused) else told.reason.lower()
