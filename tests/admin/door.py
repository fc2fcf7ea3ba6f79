"""The HTTP door of admin behind a bare aiohttp server, and a client for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from gateway.ids import uuid7
from gateway.rpc.channel import aio_channel
from gateway.rpc.identity import Identity
from services.proxy.admin_http import AdminRoutes


@dataclass
class Answer:
    """An answer, read whole."""

    status: int
    headers: Mapping[str, str]
    cookies: list[str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


@dataclass
class Door:
    """Sends requests as one administrator."""

    port: int
    session: aiohttp.ClientSession
    secret: str = ""

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def send(
        self,
        method: str,
        path: str,
        body: str | bytes | dict[str, Any] | None = None,
        *,
        content_type: str = "application/x-www-form-urlencoded",
        headers: Mapping[str, str] | None = None,
        bearer: str | None = None,
    ) -> Answer:
        secret = self.secret if bearer is None else bearer
        sent = {"Authorization": f"Bearer {secret}"} if secret else {}
        data = json.dumps(body) if isinstance(body, dict) else body
        if data is not None:
            sent["Content-Type"] = content_type
        sent |= dict(headers or {})
        url = URL(self.origin + path, encoded=True)  # as it stands: the client would tidy the path up
        async with self.session.request(method, url, data=data, headers=sent) as response:
            text = await response.text()
            return Answer(response.status, response.headers, response.headers.getall("Set-Cookie", []), text)

    async def login(self, password: str, **more: Any) -> Answer:
        body = {"username": "admin", "password": password, **more}
        return await self.send("POST", "/auth/login", body, bearer="")


@asynccontextmanager
async def open_door(admin_port: int, identities: Mapping[str, Identity]) -> AsyncIterator[Door]:
    channel = aio_channel(f"127.0.0.1:{admin_port}", identities["proxy"], "admin")
    routes = AdminRoutes(channel=channel)
    runner = web.ServerRunner(web.Server(lambda request: routes.handle(request, uuid7())))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), skip_auto_headers=["User-Agent"]) as session:
        yield Door(port, session)
    await runner.cleanup()
    await channel.close()
