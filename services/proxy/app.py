"""The edge itself: every request from its arrival to its answer, and what becomes of errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, Literal, Protocol

from aiohttp import web

from gateway.errors import GatewayError, MethodNotAllowed
from gateway.ids import uuid7
from gateway.process.logs import get_logger
from gateway.process.settings import Settings
from services.proxy import cors, errors, openapi, routes
from services.proxy.answers import encode, json_answer, raw_answer
from services.proxy.attempts import Attempts
from services.proxy.body import Pool
from services.proxy.books import Auth, Outbox
from services.proxy.chat import Chat
from services.proxy.credentials import Strangers
from services.proxy.exchange import Exchange
from services.proxy.forwarded import TrustedProxies
from services.proxy.gate import Gate
from services.proxy.metrics import EdgeMetrics
from services.proxy.models_route import ModelsRoute
from services.proxy.providers.base import ProviderRefused
from services.proxy.providers.registry import Registry
from services.proxy.reading import Reader
from services.proxy.relay import Relay
from services.proxy.request_log import RequestLog
from services.proxy.server import EdgeServer, answer_early, check_framing, ends_with, is_plainly_framed
from services.proxy.token_routes import TokenRoutes
from services.proxy.upstream import Upstream

_log = get_logger(__name__)


class Admin(Protocol):
    """Answers everything under `/admin` and `/auth`."""

    async def handle(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        """The answer. request_id: as the log has it."""
        ...


class App:
    """Answers requests.

    budget_status: what stands for 402, by setting. admin_apart: whether `/admin` and `/auth` are not among the rest.
    proxies: the trusted ones; None: there are none. cross_origin: for browsers; None: pages of other origins may not call.
    """

    def __init__(
        self,
        *,
        auth: Auth,
        outbox: Outbox,
        chat: Chat,
        models: ModelsRoute,
        tokens: TokenRoutes,
        admin: Admin,
        metrics: EdgeMetrics,
        budget_status: Literal[402, 429] = 402,
        admin_apart: bool = False,
        proxies: TrustedProxies | None = None,
        cross_origin: cors.Cors | None = None,
    ) -> None:
        self._auth = auth
        self._outbox = outbox
        self._admin = admin
        self._metrics = metrics
        self._budget_status = budget_status
        self.closing = False
        """Whether the proxy is about to stop: it is not ready, and connections end with their answers."""
        self._open = 0
        self._last_ended = float("-inf")
        self._nothing_open = asyncio.Event()
        self._nothing_open.set()
        self._requests = RequestLog()
        self._proxies = proxies
        self._cors = cross_origin
        common = {
            routes.HEALTH: {"GET": self._health, "HEAD": self._health},
            routes.READINESS: {"GET": self._readiness, "HEAD": self._readiness},
            routes.ROOT: {"HEAD": self._root},
        }
        self._table = routes.Table(
            {
                routes.CHAT: {"POST": chat.handle},
                routes.MODELS: {"GET": models.index},
                routes.TOKEN_USAGE: {"GET": tokens.usage},
                routes.TOKEN_BALANCE: {"GET": tokens.balance},
                routes.DESCRIPTION: {"GET": _described(openapi.document(admin=not admin_apart))},
                **common,
            },
            model={"GET": models.get},
            admin=None if admin_apart else self._to_admin,
        )
        self._admin_table = routes.Table(
            {routes.DESCRIPTION: {"GET": _described(openapi.document(applications=False))}, **common}, admin=self._to_admin
        )

    @property
    def ready(self) -> bool:
        """Whether a call that comes now can be answered."""
        return not self.closing and self._auth.ready and self._outbox.writable

    def close(self) -> None:
        """Notes that the proxy is about to stop."""
        self.closing = True
        self._requests.flush()

    def watch(self, server: EdgeServer) -> None:
        """Adds the connections of applications to the metrics."""
        self._metrics.watch_connections(
            taken=lambda: server.open_connections, unread=lambda: server.unread.total, ended=lambda: server.ended
        )

    @property
    def open_requests(self) -> int:
        """How many requests are open."""
        return self._open

    async def idle(self, quiet: float = 0.0) -> None:
        """Returns when no request is open and none has been for `quiet` seconds.

        Callers keep connections; while they still use them, the next request may be on its way, and would be lost with its
        connection. Each answer ends its connection from `close` on, so that soon nothing comes any more.
        """
        clock = asyncio.get_running_loop().time
        while True:
            await self._nothing_open.wait()
            left = self._last_ended + quiet - clock()
            if left <= 0:
                return
            await asyncio.sleep(left)

    def handle(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """The answer to a request. Never raises but when the caller goes away."""
        return self._serve(request, self._table)

    def handle_admin(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """The same on a port for administration alone."""
        return self._serve(request, self._admin_table)

    async def _serve(self, request: web.BaseRequest, table: routes.Table) -> web.StreamResponse:
        clock = asyncio.get_running_loop().time
        exchange = Exchange(request, uuid7(), clock(), request.remote or "", closing=lambda: self.closing or ends_with(request))
        if self._proxies is not None:
            exchange.address, exchange.scheme = self._proxies.caller(request)
        if self._cors is not None and request.raw_path.startswith(cors.PREFIX):
            exchange.cors = self._cors.headers(request)
        reason = "client_closed"
        status = 499  # nobody gets it: the log's word for a caller who went away
        self._open += 1
        self._nothing_open.clear()
        try:
            response, reason = await self._answer(exchange, table)
            status = response.status
            if not response.prepared:
                response.headers.update(exchange.headers())
                if self.closing or ends_with(request) or not is_plainly_framed(request):
                    response.force_close()
                if not request.content.is_eof():
                    await answer_early(request, response)
            return response
        finally:
            self._open -= 1
            self._last_ended = now = clock()
            if not self._open:
                self._nothing_open.set()
            self._metrics.request(exchange, request.raw_path.partition("?")[0], status, reason, now - exchange.arrived)
            self._requests.write(exchange, status, reason, now)

    async def _answer(self, exchange: Exchange, table: routes.Table) -> tuple[web.StreamResponse, str]:
        """The answer, and the reason where it is a refusal."""
        request = exchange.request
        try:
            check_framing(request)
            handler = table.find(request.method, request.raw_path.partition("?")[0])
            return await handler(exchange), ""
        except ConnectionError:
            raise
        except Exception as error:
            answer = self._refusal(exchange, error)
            errors.let_go(error)
            return answer

    def _refusal(self, exchange: Exchange, error: Exception) -> tuple[web.StreamResponse, str]:
        request = exchange.request
        if isinstance(error, MethodNotAllowed):
            allowed = error.metadata["allow"]
            if request.method == "OPTIONS":
                if self._cors is not None and exchange.cors is not None:
                    exchange.cors = {**exchange.cors, **self._cors.preflight(request, allowed)}
                return web.Response(status=204, headers={"Allow": allowed, "Server": errors.SERVER_NAME}), ""
            return errors.answer(error, headers={"Allow": allowed}), error.reason
        if isinstance(error, ProviderRefused):
            return _relayed(error), f"PROVIDER_{error.relayed.status}"
        if isinstance(error, GatewayError):
            return errors.answer(error, budget_status=self._budget_status), error.reason
        _log.exception("request_failed", request_id=exchange.request_id, error=type(error).__name__, exc_info=error)
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer has begun already, and cannot be ended well") from error
        return errors.answer(error), GatewayError.reason

    async def _to_admin(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        if exchange.scheme:
            request = request.clone(scheme=exchange.scheme, remote=exchange.address)
        return await self._admin.handle(request, exchange.request_id)

    async def _health(self, _: Exchange) -> web.StreamResponse:
        return json_answer({"status": "ok"})

    async def _readiness(self, _: Exchange) -> web.StreamResponse:
        parts = {"auth": self._auth.ready, "outbox": self._outbox.writable, "stopping": self.closing}
        return json_answer({"status": "ready" if self.ready else "not ready", **parts}, status=200 if self.ready else 503)

    async def _root(self, _: Exchange) -> web.StreamResponse:
        return web.Response(status=200, headers={"Server": errors.SERVER_NAME})


def _described(document: Mapping[str, Any]) -> routes.Handler:
    """The handler that tells what is there."""
    body = encode(document)

    async def handle(_: Exchange) -> web.StreamResponse:
        return raw_answer(body)

    return handle


def _relayed(refusal: ProviderRefused) -> web.Response:
    """A provider's refusal as the caller gets it."""
    relayed = refusal.relayed
    response = json_answer({"error": relayed.error}, status=relayed.status)
    if relayed.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(relayed.retry_after)))
        response.headers["retry-after-ms"] = str(round(relayed.retry_after * 1000))
    return response


def make_app(
    settings: Settings,
    *,
    auth: Auth,
    outbox: Outbox,
    registry: Registry,
    upstream: Upstream,
    admin: Admin,
    relay: Relay,
    reader: Reader,
    metrics: EdgeMetrics,
) -> App:
    """The edge of these parts."""
    gate = Gate(auth=auth, strangers=Strangers())
    pool = Pool(settings.body_pool)
    models = ModelsRoute(gate=gate, registry=registry)
    chat = Chat(
        gate=gate,
        outbox=outbox,
        registry=registry,
        models=models,
        attempts=Attempts(upstream=upstream),
        relay=relay,
        body_limit=settings.body_limit,
        pool=pool,
        reader=reader,
    )
    app = App(
        auth=auth,
        outbox=outbox,
        chat=chat,
        models=models,
        tokens=TokenRoutes(gate=gate),
        admin=admin,
        metrics=metrics,
        budget_status=settings.budget_status,
        admin_apart=settings.admin_http is not None,
        proxies=TrustedProxies(settings.trusted_proxies) if settings.trusted_proxies else None,
        cross_origin=cors.Cors(settings.cors_origins) if settings.cors_origins else None,
    )
    metrics.watch(
        in_flight=lambda: app.open_requests,
        waiting=lambda: auth.waiting,
        auth_up=lambda: auth.ready,
        bodies=lambda: settings.body_pool - pool.free,
        bodies_most=settings.body_pool,
    )
    return app
