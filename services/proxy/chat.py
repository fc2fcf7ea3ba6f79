"""`POST /v1/chat/completions`: read, judged, admitted, sent, answered, settled."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.errors import GatewayError
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy import body
from services.proxy.attempts import Attempts
from services.proxy.body import Pool, Share
from services.proxy.books import Outbox
from services.proxy.credentials import client_token
from services.proxy.dialects import openai
from services.proxy.dialects.openai import ChatCall
from services.proxy.exchange import Exchange, readable
from services.proxy.gate import Gate
from services.proxy.models_route import ModelsRoute, not_found
from services.proxy.outbox import token_key
from services.proxy.providers.base import ProviderRefused, Target
from services.proxy.providers.registry import Registry
from services.proxy.reading import Reader, is_costly
from services.proxy.relay import Relay
from services.proxy.ticket import Ticket
from services.proxy.upstream import Reply


class Chat:
    """The handler of chat completions.

    body_limit: bytes that a body may have. pool: the memory for all bodies. reader: reads them.
    """

    def __init__(
        self,
        *,
        gate: Gate,
        outbox: Outbox,
        registry: Registry,
        models: ModelsRoute,
        attempts: Attempts,
        relay: Relay,
        body_limit: int,
        pool: Pool,
        reader: Reader,
    ) -> None:
        self._gate = gate
        self._outbox = outbox
        self._registry = registry
        self._models = models
        self._attempts = attempts
        self._relay = relay
        self._body_limit = body_limit
        self._pool = pool
        self._reader = reader

    async def handle(self, exchange: Exchange) -> web.StreamResponse:
        """The answer. Raises GatewayError, ProviderRefused."""
        token = client_token(exchange.request.headers)
        with Share(self._pool) as share:
            call = await self._read(exchange, token, share)
            exchange.model = call.model
            targets = self._registry.route(call.model)
            if not targets:
                await self._look(exchange, token, call.model)
                raise not_found(call.model, await self._models.usable(exchange))
            ticket = await self._admit(exchange, token, call, targets)
            try:
                reply, target = await self._open(ticket, targets)
                share.release()
                if call.stream and _is_event_stream(reply.headers.get("Content-Type", "")):
                    return await self._relay.stream(exchange, ticket, reply, target)
                return await self._relay.plain(exchange, ticket, reply, target)
            except asyncio.CancelledError:
                if ticket.settlement is None and not ticket.left:
                    ticket.hung_up()
                raise
            except (GatewayError, ProviderRefused):
                await ticket.kept()
                raise
            finally:
                if not ticket.handed_over:
                    ticket.settle()

    async def _read(self, exchange: Exchange, token: str, share: Share) -> ChatCall:
        """The call in the body. Raises what is wrong with it.

        The token comes first: who sends an unknown one never learns whether the body was valid, and has no costly body read.
        A good and plain body costs no look of its own, because the admission judges its token.
        """
        request = exchange.request
        known = False
        try:
            body.check_head(request, self._body_limit)
            if body.is_large(request):
                await self._look(exchange, token)
                known = True
            raw = await body.read(request, limit=self._body_limit, share=share)
            if not known and is_costly(raw):
                await self._look(exchange, token)
                known = True
            return await self._reader.read(raw)
        except body.FAULTS:
            if not known:
                await self._look(exchange, token)
            raise

    async def _look(self, exchange: Exchange, token: str, model: str = "") -> None:
        # From now on: a body may take longer to come than anyone waits for a decision.
        now = asyncio.get_running_loop().time()
        await self._gate.look(token, exchange.address, now, exchange.request_id, model)

    async def _admit(self, exchange: Exchange, token: str, call: ChatCall, targets: list[Target]) -> Ticket:
        bound = call.bound
        request = pb.ValidateTokenRequest(
            token=token,
            request_id=exchange.request_id,
            endpoint=openai.CHAT,
            dialect=openai.NAME,
            stream=call.stream,
            request_model=call.model,
            candidates=[pb.Candidate(provider=target.provider.name, model=target.model) for target in targets],
            input_token_ceiling=min(bound.ceiling, 10**9),
            max_output_tokens=call.limit,
            choices=call.choices,
            thinking_budget_tokens=call.thinking,
            input_unbounded=bound.elsewhere,
            unbounded_features=bound.endless,
            units=bound.units,
            client_ip=exchange.address,
            user_agent=readable(exchange.request.headers.get("User-Agent", "")[:200]),
        )
        key = token_key(token)
        # From here on: a body may take longer to come than anyone waits for a decision.
        grant = await self._gate.admit(request, asyncio.get_running_loop().time())
        bound.thin()
        ticket = Ticket(
            request_id=exchange.request_id,
            token_key=key,
            call=call,
            grant=grant,
            outbox=self._outbox,
            arrived=exchange.arrived,
            clock=asyncio.get_running_loop().time,
        )
        exchange.ticket = ticket
        return ticket

    async def _open(self, ticket: Ticket, targets: list[Target]) -> tuple[Reply, Target]:
        try:
            self._outbox.opened(ticket.request_id, ticket.token_key)
        except GatewayError:
            ticket.error_code = "not_sent"
            raise
        return await self._relay.open(ticket, self._attempts.open(ticket, targets))


def _is_event_stream(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"
