"""A provider's answer on its way to the caller. The bytes pass; a meter looks at them; the books come before the last byte."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Literal

from aiohttp import web

from gateway.errors import GatewayError, UpstreamError, UpstreamTimeout
from gateway.process.logs import get_logger
from services.proxy import errors
from services.proxy.answers import raw_answer
from services.proxy.dialects.openai_chunks import read_chunk
from services.proxy.exchange import Exchange
from services.proxy.metering import StreamMeter
from services.proxy.providers.base import Provider, ProviderRefused, Target
from services.proxy.providers.redaction import StreamRedactor
from services.proxy.sse import EventTooLarge
from services.proxy.ticket import Ticket
from services.proxy.upstream import BrokenOff, Reply

MAX_ANSWER = 24 * 1024 * 1024
"""Bytes that an answer in one piece may have."""
_EVENTS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
    "Server": errors.SERVER_NAME,
}

_log = get_logger(__name__)


class _EventStream(web.StreamResponse):
    """A stream whose head travels with its first event."""

    _send_headers_immediately = False


async def _begin(exchange: Exchange, response: web.StreamResponse) -> None:
    """Sends the head of a stream. A caller who keeps his connection to an edge that stops would keep it from stopping."""
    if exchange.closing():
        response.force_close()
    await response.prepare(exchange.request)


class Relay:
    """Passes answers on.

    on_hangup: what becomes of the provider's answer when the caller goes away: `cancel` it, or `drain` it, so that it is
    charged by the provider's own numbers.
    """

    def __init__(self, *, on_hangup: Literal["cancel", "drain"]) -> None:
        self._drains = on_hangup == "drain"
        self._draining: set[asyncio.Task[None]] = set()

    async def close(self, seconds: float) -> None:
        """Waits for the answers that are being drained, at most so long, and settles the others as they are."""
        if self._draining:
            _, late = await asyncio.wait(self._draining, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def plain(self, exchange: Exchange, ticket: Ticket, reply: Reply, target: Target) -> web.StreamResponse:
        """An answer in one piece: read whole, put on the books, sent as it came. Raises UpstreamError, UpstreamTimeout."""
        meter = ticket.new_meter()
        ticket.answered(reply.status, meter)
        parts: list[bytes] = []
        try:
            await self._gather(reply, parts)
        except BrokenOff as failure:
            meter.count_fragment(b"".join(parts))
            raise _broken(ticket, target.provider, failure) from failure
        except asyncio.CancelledError:
            ticket.hung_up()
            if self._drains:
                self._drain(ticket, reply, self._drain_plain(ticket, reply, parts))
            raise
        finally:
            if not ticket.handed_over:
                reply.close()
        body = b"".join(parts)
        ticket.first_byte()
        chunk = read_chunk(body)
        if chunk is None:
            ticket.error_code = "upstream_error"
            raise UpstreamError(f"The provider {target.provider.name} answered something that is not JSON.")
        meter.count(chunk)
        ticket.error_code = ""
        await ticket.kept()
        exchange.cost_nanos = ticket.cost_nanos()
        return raw_answer(await target.provider.keys.redactor.redact_long(body))

    async def stream(self, exchange: Exchange, ticket: Ticket, reply: Reply, target: Target) -> web.StreamResponse:
        """An answer in events, each passed on as it comes. Raises UpstreamError, UpstreamTimeout before the first event."""
        meter = StreamMeter(
            usage_asked=ticket.call.usage_asked, bound=ticket.call.bound, limit=ticket.limit, choices=ticket.call.choices
        )
        ticket.answered(reply.status, meter)
        response = _EventStream(headers={**_EVENTS, **exchange.headers()})
        whole = False
        try:
            failure = await self._pass(exchange, ticket, meter, reply, target, response)
            if failure is not None:
                if not response.prepared:
                    raise failure
                await ticket.kept()
                await response.write_eof(errors.event(failure))
            else:
                if not response.prepared:
                    await _begin(exchange, response)
                await ticket.kept()
                await response.write_eof(target.provider.keys.redactor.redact(meter.last or b""))
                whole = True
        except (asyncio.CancelledError, ConnectionError):
            if ticket.settlement is None:
                ticket.hung_up()
                if self._drains:
                    self._drain(ticket, reply, self._drain_stream(ticket, meter, reply))
            raise
        finally:
            if not ticket.handed_over:
                ticket.settle()
                if not whole:
                    reply.close()
        with suppress(asyncio.CancelledError):  # a caller who leaves now has all of it, and so have the books
            await reply.finish()
        return response

    async def _pass(
        self, exchange: Exchange, ticket: Ticket, meter: StreamMeter, reply: Reply, target: Target, response: _EventStream
    ) -> GatewayError | None:
        """Passes events on until the last one; gives what went wrong."""
        redactor = StreamRedactor(target.provider.keys.redactor)
        begun = False
        try:
            while meter.last is None and (data := await reply.read()):
                events = meter.feed(data)
                if events:
                    if not begun:
                        ticket.first_byte()
                        await _begin(exchange, response)
                        begun = True
                    await response.write(redactor.redact(events, meter.take_fresh()))
                ticket.tick()
        except BrokenOff as failure:
            return _broken(ticket, target.provider, failure)
        except EventTooLarge as failure:
            return _broken(ticket, target.provider, BrokenOff(str(failure)))
        if meter.last is None:
            rest = meter.end()
            if rest:
                if not begun:
                    await _begin(exchange, response)
                await response.write(redactor.redact(rest, meter.take_fresh()))
        if meter.failed:
            ticket.error_code = "upstream_error"
        elif meter.last is None and not meter.finished:
            return _broken(ticket, target.provider, BrokenOff("the stream ended before the answer did"))
        else:
            ticket.error_code = ""
        return None

    async def _gather(self, reply: Reply, parts: list[bytes]) -> None:
        size = sum(map(len, parts))
        while data := await reply.read():
            parts.append(data)
            size += len(data)
            if size > MAX_ANSWER:
                raise BrokenOff(f"the answer has more than {MAX_ANSWER} bytes")

    # -- draining ------------------------------------------------------------------------------------------------------------

    async def open(self, ticket: Ticket, opening: Coroutine[Any, Any, tuple[Reply, Target]]) -> tuple[Reply, Target]:
        """Waits until a provider answers; when the caller goes away before, that is waited for without him where we drain."""
        if not self._drains:
            return await opening
        task = asyncio.create_task(opening)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            ticket.hung_up()
            ticket.handed_over = True
            self._keep(self._drain_opening(ticket, task))
            raise

    async def _drain_opening(self, ticket: Ticket, task: asyncio.Task[tuple[Reply, Target]]) -> None:
        try:
            reply, _ = await task
        except (GatewayError, ProviderRefused):
            ticket.settle()
            return
        except asyncio.CancelledError:
            task.cancel()
            ticket.settle()
            raise
        if ticket.call.stream:
            meter = StreamMeter(usage_asked=True, bound=ticket.call.bound, limit=ticket.limit, choices=ticket.call.choices)
            ticket.answered(reply.status, meter)
            await self._drained(ticket, reply, self._drain_stream(ticket, meter, reply))
        else:
            ticket.answered(reply.status, ticket.new_meter())
            await self._drained(ticket, reply, self._drain_plain(ticket, reply, []))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    def _drain(self, ticket: Ticket, reply: Reply, work: Coroutine[Any, Any, None]) -> None:
        """Lets the answer run to its end without the caller; the ticket is settled there."""
        ticket.handed_over = True
        self._keep(self._drained(ticket, reply, work))

    async def _drained(self, ticket: Ticket, reply: Reply, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (BrokenOff, EventTooLarge) as failure:
            _log.warning("drain_broken_off", request_id=ticket.request_id, error=str(failure))
        finally:
            ticket.settle()
            reply.close()

    async def _drain_plain(self, ticket: Ticket, reply: Reply, parts: list[bytes]) -> None:
        await self._gather(reply, parts)
        chunk = read_chunk(b"".join(parts))
        if chunk is not None and ticket.meter is not None:
            ticket.meter.count(chunk)

    async def _drain_stream(self, ticket: Ticket, meter: StreamMeter, reply: Reply) -> None:
        while meter.last is None and (data := await reply.read()):
            meter.feed(data)
            ticket.tick()


def _broken(ticket: Ticket, provider: Provider, failure: BrokenOff) -> GatewayError:
    """Notes that an answer broke off, and gives what the caller is told."""
    provider.failed()
    _log.warning("upstream_broke_off", request_id=ticket.request_id, provider=provider.name, error=str(failure))
    if failure.late:
        ticket.error_code = "upstream_timeout"
        return UpstreamTimeout(f"The provider {provider.name} stopped in the middle of its answer.")
    ticket.error_code = "upstream_error"
    return UpstreamError(f"The provider {provider.name} broke its answer off.")
