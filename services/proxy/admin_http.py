"""The HTTP door of admin: `/auth/*` and `/admin/*` at the edge, each a call to the admin service in the caller's own session.

Nothing is decided here but what HTTP itself brings: which route, which credential, whether a page of our own sent it, and how a
body is written. `admin_session` reads credentials, `admin_json` and `admin_log` bodies; rights and rules are admin's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from aiohttp import web

from gateway.errors import (
    AdminUnavailable,
    DatabaseUnavailable,
    GatewayError,
    IdentityRevoked,
    MethodNotAllowed,
    NotFound,
    PermissionDenied,
    RouteNotFound,
)
from gateway.ids import is_canonical_uuid
from gateway.process import logs
from gateway.rpc.status import from_status
from gateway.stubs.admin.v1 import (
    adjustments_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    prices_pb2,
    prices_pb2_grpc,
    requests_pb2,
    requests_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from services.proxy import admin_books, admin_json, admin_log, body, errors, strict_json
from services.proxy.admin_session import clear_cookie, credential, refuse_foreign_page, set_cookie
from services.proxy.answers import json_answer

_log: Final = logs.get_logger(__name__)

_BODY_LIMIT: Final = 16 << 10
"""Bytes that a body may have, a login's too."""
_BODY_LIMITS: Final = {"/admin/tokens": 64 << 10, "/admin/tokens/*": 64 << 10, "/admin/prices": 64 << 10}
"""The same of the routes whose bodies hold lists."""
_MOST_VALUES: Final = 2_000
"""JSON values that a body may hold; the largest list has a few hundred."""
_BODY_POOL: Final = 16 << 20
STARTING: Final = 5.0
"""Seconds that a request waits for an admin that has not been there yet."""
AWAY: Final = 1.0
"""Seconds that it waits for one that was."""
_DEADLINE: Final = 10.0  # seconds for a call that has begun; a login may wait 3 s for its turn to hash
_PRIVATE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_ONE_TIME: Final = (
    "This session was opened with a one-time password and may only change it: POST /auth/password "
    '{"old_password": "...", "new_password": "..."}.'
)


@dataclass(frozen=True, slots=True)
class _Request:
    """What a handler gets: the request, the id in its path, and the metadata for admin."""

    http: web.BaseRequest
    id: str
    body_limit: int
    metadata: tuple[tuple[str, str], ...]
    by_cookie: bool = False

    @property
    def token_id(self) -> int:
        """The token's id in the path. Raises NotFound for what can be none."""
        return self.number("token")

    def number(self, kind: str) -> int:
        """The number in the path, of a thing of this kind. Raises NotFound for what can be none."""
        if not self.id.isascii() or not self.id.isdigit() or len(self.id) > 18:
            raise NotFound(f"There is no such {kind}.")
        return int(self.id)

    @property
    def uuid(self) -> str:
        """The request's or session's id in the path. Raises NotFound for what can be none."""
        if not is_canonical_uuid(self.id):
            raise NotFound("There is nothing with this id.")
        return self.id


_Handler = Callable[[_Request], Awaitable[web.Response]]


class AdminRoutes:
    """Answers every path under `/auth` and `/admin`.

    channel: to the admin service, under the proxy's identity.
    """

    def __init__(self, *, channel: grpc.aio.Channel) -> None:
        self._pool = body.Pool(_BODY_POOL)
        self._seen = False
        self.use(channel)
        # `*` stands for the one id of a path.
        self._routes: Mapping[str, Mapping[str, _Handler]] = self._table()

    def use(self, channel: grpc.aio.Channel) -> None:
        """Has what comes from now on go over this channel."""
        self.channel = channel
        self._sessions = sessions_pb2_grpc.SessionServiceStub(channel)
        self._tokens = tokens_pb2_grpc.TokenServiceStub(channel)
        self._requests = requests_pb2_grpc.RequestLogServiceStub(channel)
        self._audit = audit_pb2_grpc.AuditServiceStub(channel)
        self._usage = usage_pb2_grpc.UsageServiceStub(channel)
        self._adjustments = adjustments_pb2_grpc.AdjustmentServiceStub(channel)
        self._prices = prices_pb2_grpc.PriceServiceStub(channel)

    def _table(self) -> Mapping[str, Mapping[str, _Handler]]:
        return {
            "/auth/login": {"POST": self._login},
            "/auth/logout": {"POST": self._logout},
            "/auth/session": {"GET": self._session},
            "/auth/password": {"POST": self._password},
            "/admin/tokens": {"GET": self._list_tokens, "POST": self._create_token},
            "/admin/tokens/*": {"GET": self._get_token, "PATCH": self._update_token, "DELETE": self._delete_token},
            "/admin/tokens/*/toggle": {"POST": self._toggle_token},
            "/admin/tokens/*/rotate": {"POST": self._rotate_token},
            "/admin/tokens/*/topup": {"POST": self._top_up_token},
            "/admin/tokens/*/adjustments": {"GET": self._list_adjustments, "POST": self._create_adjustment},
            "/admin/prices": {"GET": self._list_prices, "POST": self._create_price},
            "/admin/prices/*": {"DELETE": self._retire_price},
            "/admin/logs/requests": {"GET": self._list_requests},
            "/admin/logs/requests/*": {"GET": self._get_request},
            "/admin/usage/customers": {"GET": self._list_customers},
            "/admin/audit": {"GET": self._list_audit},
            "/admin/sessions": {"GET": self._list_sessions},
            "/admin/sessions/*": {"DELETE": self._revoke_session},
        }

    async def handle(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        """The answer to a request, whose `remote` is the caller. Never raises for what a caller does.

        request_id: as the edge logs the request.
        """
        try:
            response = await self._answer(request, request_id)
        except GatewayError as error:
            allow = {"Allow": error.metadata["allow"]} if isinstance(error, MethodNotAllowed) else None
            response = errors.answer(_as_told(error), headers=allow)
        response.headers.update(_PRIVATE)
        response.headers["x-request-id"] = response.headers["request-id"] = request_id
        return response

    async def _answer(self, request: web.BaseRequest, request_id: str) -> web.Response:
        handler, found_id, limit = self._route(request)
        metadata = self._metadata(request, request_id)
        if handler == self._login:
            body.check_head(request, limit)
            return await handler(_Request(request, found_id, limit, metadata))
        brought = credential(request)
        metadata = (*metadata, ("authorization", f"Bearer {brought.secret}"))
        asked = _Request(request, found_id, limit, metadata, brought.by_cookie)
        try:
            body.check_head(request, limit)
            if body.is_large(request):
                await self._require_session(asked)
            return await handler(asked)
        except (NotFound, *body.FAULTS):
            # What we found ourselves is told to administrators only; what admin says comes after its own look at the session.
            await self._require_session(asked)
            raise

    def _route(self, request: web.BaseRequest) -> tuple[_Handler, str, int]:
        """The handler, the id in the path, and how many bytes the body may have."""
        # The path as it came: an escaped slash is no slash, and no two spellings name the same thing.
        path, found_id = request.raw_path.partition("?")[0], ""
        route = path
        methods = self._routes.get(path) if "*" not in path else None
        if methods is None:
            parts = path.split("/")
            place = 4 if parts[1:4] == ["admin", "logs", "requests"] else 3
            if len(parts) > place and parts[place] and "*" not in path:
                found_id, parts[place] = parts[place], "*"
                route = "/".join(parts)
                methods = self._routes.get(route)
        if methods is None:
            raise RouteNotFound(f"There is no route {path[:200]}.")
        if request.method not in methods:
            allow = ", ".join(methods)
            raise MethodNotAllowed(f"{path[:200]} takes {allow}.", metadata={"allow": allow})
        return methods[request.method], found_id, _BODY_LIMITS.get(route, _BODY_LIMIT)

    def _metadata(self, request: web.BaseRequest, request_id: str) -> tuple[tuple[str, str], ...]:
        agent = request.headers.get("User-Agent", "")[:200].encode("ascii", "replace").decode()
        printable = "".join(character if character.isprintable() else "?" for character in agent).strip()
        return (("x-client-ip", request.remote or ""), ("x-user-agent", printable), ("x-request-id", request_id))

    async def _call(self, method: Any, message: Any, request: _Request) -> Any:
        """Calls admin. Raises what admin says; AdminUnavailable when it does not come in time."""
        if self.channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            try:
                async with asyncio.timeout(AWAY if self._seen else STARTING):
                    await self.channel.channel_ready()
            except TimeoutError:
                raise AdminUnavailable("The admin service does not answer. Try again in a moment.", retry_after=1.0) from None
        try:
            answer = await method(message, metadata=request.metadata, timeout=_DEADLINE)
        except grpc.aio.AioRpcError as error:
            raise from_status(error, unavailable=AdminUnavailable) from None
        self._seen = True
        return answer

    async def _require_session(self, request: _Request) -> None:
        """Raises Unauthenticated unless the session lives."""
        await self._call(self._sessions.GetSession, sessions_pb2.GetSessionRequest(), request)

    async def _members(self, request: _Request) -> Mapping[str, Any]:
        """The members of the body's object; none for an empty body."""
        with body.Share(self._pool) as share:
            raw = await body.read(request.http, limit=request.body_limit, share=share)
        return strict_json.read(raw, most_values=_MOST_VALUES).members if raw.strip() else {}

    # -- /auth -----------------------------------------------------------------------------------------------------------------

    async def _login(self, request: _Request) -> web.Response:
        refuse_foreign_page(request.http)
        message = admin_json.login_from_json(await self._members(request))
        answer = await self._call(self._sessions.Login, message, request)
        told = {"expires_at": admin_json.moment_to_json(answer.session.expires_at)}
        if message.kind == sessions_pb2.SESSION_KIND_WEB:
            return json_answer(told, headers=set_cookie({}, answer.session_token))
        return json_answer({"session_token": answer.session_token, **told})

    async def _logout(self, request: _Request) -> web.Response:
        await self._call(self._sessions.Logout, sessions_pb2.LogoutRequest(), request)
        return json_answer({}, headers=clear_cookie({}) if request.by_cookie else None)

    async def _session(self, request: _Request) -> web.Response:
        admin_log.parameters(request.http.query, ())
        answer = await self._call(self._sessions.GetSession, sessions_pb2.GetSessionRequest(), request)
        return json_answer(admin_json.session_to_json(answer.session))

    async def _password(self, request: _Request) -> web.Response:
        message = admin_json.password_from_json(await self._members(request))
        await self._call(self._sessions.ChangePassword, message, request)
        return json_answer({})

    # -- /admin/tokens ---------------------------------------------------------------------------------------------------------

    async def _list_tokens(self, request: _Request) -> web.Response:
        given = admin_log.parameters(request.http.query, ("name", "customer", "page_size", "page_token", "cursor"))
        message = tokens_pb2.ListTokensRequest(
            name_contains=given.get("name", ""), customer=given.get("customer", ""), **admin_log.page(given)
        )
        answer = await self._call(self._tokens.ListTokens, message, request)
        return _list("tokens", [admin_json.token_to_json(token) for token in answer.tokens], answer.next_page_token)

    async def _create_token(self, request: _Request) -> web.Response:
        message = admin_json.create_from_json(await self._members(request))
        answer = await self._call(self._tokens.CreateToken, message, request)
        told = admin_json.token_to_json(answer.token)
        told |= {"token": answer.secret or None, "warnings": list(answer.warnings)}
        return json_answer(told, status=201 if answer.secret else 200)

    async def _get_token(self, request: _Request) -> web.Response:
        admin_log.parameters(request.http.query, ())
        answer = await self._call(self._tokens.GetToken, tokens_pb2.GetTokenRequest(id=request.token_id), request)
        return json_answer(admin_json.token_to_json(answer.token))

    async def _update_token(self, request: _Request) -> web.Response:
        message = admin_json.update_from_json(request.token_id, await self._members(request))
        answer = await self._call(self._tokens.UpdateToken, message, request)
        return json_answer(admin_json.token_to_json(answer.token) | {"warnings": list(answer.warnings)})

    async def _delete_token(self, request: _Request) -> web.Response:
        token_id = request.token_id
        await self._call(self._tokens.DeleteToken, tokens_pb2.DeleteTokenRequest(id=token_id), request)
        return json_answer({"id": token_id, "deleted": True})

    async def _toggle_token(self, request: _Request) -> web.Response:
        message = admin_json.toggle_from_json(request.token_id, await self._members(request))
        answer = await self._call(self._tokens.SetTokenEnabled, message, request)
        return json_answer(admin_json.token_to_json(answer.token))

    async def _rotate_token(self, request: _Request) -> web.Response:
        message = admin_json.rotate_from_json(request.token_id, await self._members(request))
        answer = await self._call(self._tokens.RotateToken, message, request)
        return json_answer(admin_json.token_to_json(answer.token) | {"token": answer.secret or None})

    async def _top_up_token(self, request: _Request) -> web.Response:
        message = admin_json.top_up_from_json(request.token_id, await self._members(request))
        answer = await self._call(self._tokens.TopUpToken, message, request)
        return json_answer(admin_json.token_to_json(answer.token) | {"revived": answer.revived})

    # -- /admin/tokens/*/adjustments, /admin/prices ----------------------------------------------------------------------------

    async def _list_adjustments(self, request: _Request) -> web.Response:
        message = admin_books.adjustments_from_query(request.token_id, request.http.query)
        answer = await self._call(self._adjustments.ListAdjustments, message, request)
        found = [admin_books.adjustment_to_json(adjustment) for adjustment in answer.adjustments]
        return _list("adjustments", found, answer.next_page_token)

    async def _create_adjustment(self, request: _Request) -> web.Response:
        message = admin_books.adjustment_from_json(request.token_id, await self._members(request))
        answer = await self._call(self._adjustments.CreateAdjustment, message, request)
        return json_answer(admin_books.booked_to_json(answer), status=201)

    async def _list_prices(self, request: _Request) -> web.Response:
        answer = await self._call(self._prices.ListPrices, admin_books.prices_from_query(request.http.query), request)
        return _list("prices", [admin_books.price_to_json(price) for price in answer.prices], answer.next_page_token)

    async def _create_price(self, request: _Request) -> web.Response:
        message = admin_books.price_from_json(await self._members(request))
        answer = await self._call(self._prices.CreatePrice, message, request)
        return json_answer(admin_books.price_to_json(answer.price) | {"warnings": list(answer.warnings)}, status=201)

    async def _retire_price(self, request: _Request) -> web.Response:
        message = prices_pb2.RetirePriceRequest(id=request.number("price"))
        answer = await self._call(self._prices.RetirePrice, message, request)
        return json_answer(admin_books.price_to_json(answer.price))

    # -- /admin/logs, /admin/usage, /admin/audit, /admin/sessions --------------------------------------------------------------

    async def _list_requests(self, request: _Request) -> web.Response:
        message = admin_log.list_from_query(request.http.query)
        answer = await self._call(self._requests.ListRequests, message, request)
        calls = [admin_log.request_to_json(call) for call in answer.requests]
        media = admin_log.format_of(request.http.headers.get("Accept", ""))
        if media == admin_log.JSON:
            return _list("requests", calls, answer.next_page_token)
        text = admin_log.lines(calls) if media == admin_log.NDJSON else admin_log.table(calls)
        headers = {"x-next-page-token": answer.next_page_token} if answer.next_page_token else {}
        return _text(text, media, headers)

    async def _get_request(self, request: _Request) -> web.Response:
        admin_log.parameters(request.http.query, ())
        message = requests_pb2.GetRequestRequest(request_id=request.uuid)
        answer = await self._call(self._requests.GetRequest, message, request)
        if answer.HasField("refusal"):
            return json_answer(admin_log.refusal_to_json(answer.refusal))
        return json_answer(admin_log.request_to_json(answer.request))

    async def _list_customers(self, request: _Request) -> web.Response:
        given = admin_log.parameters(request.http.query, ("page_size", "page_token", "cursor"))
        message = usage_pb2.ListCustomersRequest(**admin_log.page(given))
        answer = await self._call(self._usage.ListCustomers, message, request)
        customers = [admin_json.customer_to_json(customer) for customer in answer.customers]
        return _list("customers", customers, answer.next_page_token)

    async def _list_audit(self, request: _Request) -> web.Response:
        given = admin_log.parameters(request.http.query, ("action", "subject", "page_size", "page_token", "cursor"))
        message = audit_pb2.ListAuditRecordsRequest(
            action=given.get("action", ""), subject=given.get("subject", ""), **admin_log.page(given)
        )
        answer = await self._call(self._audit.ListAuditRecords, message, request)
        return _list("records", [admin_json.audit_to_json(record) for record in answer.records], answer.next_page_token)

    async def _list_sessions(self, request: _Request) -> web.Response:
        given = admin_log.parameters(request.http.query, ("page_size", "page_token", "cursor"))
        message = sessions_pb2.ListSessionsRequest(**admin_log.page(given))
        answer = await self._call(self._sessions.ListSessions, message, request)
        return _list("sessions", [admin_json.session_to_json(found) for found in answer.sessions], answer.next_page_token)

    async def _revoke_session(self, request: _Request) -> web.Response:
        session_id = request.uuid
        await self._call(self._sessions.RevokeSession, sessions_pb2.RevokeSessionRequest(id=session_id), request)
        return json_answer({"id": session_id, "revoked": True})


def _list(name: str, records: list[dict[str, Any]], next_page_token: str) -> web.Response:
    return _text(admin_log.document(name, records, next_page_token), admin_log.JSON, {})


def _text(text: str, media: str, headers: Mapping[str, str]) -> web.Response:
    return web.Response(
        body=text.encode("utf-8", "replace"),
        headers={
            "Content-Type": f"{media}; charset=utf-8" if media == admin_log.CSV else media,
            "Server": errors.SERVER_NAME,
            **headers,
        },
    )


def _as_told(error: GatewayError) -> GatewayError:
    """The error as this door tells it."""
    if isinstance(error, DatabaseUnavailable):
        return AdminUnavailable(error.message, retry_after=error.retry_after or 1.0)
    if isinstance(error, IdentityRevoked):
        _log.error("proxy_refused_by_admin", error=error.message)
        return AdminUnavailable("The admin service cannot be asked. Try again in a moment.", retry_after=1.0)
    if isinstance(error, PermissionDenied) and error.metadata.get("role") == "password_change":
        return PermissionDenied(_ONE_TIME)
    return error
