"""An administrator at the HTTP door: a session, and calls that answer with status and JSON."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

import aiohttp

from tests.prove.site import Site
from tests.suite.conftest import ADMIN_PASSWORD


class Desk:
    """Logged in as `admin` at the first proxy for the length of the block: `async with Desk(site) as desk:`."""

    def __init__(self, site: Site) -> None:
        self._root = site.stack.base_url.removesuffix("/v1")
        self._headers: dict[str, str] = {}

    async def __aenter__(self) -> Desk:
        self._http = aiohttp.ClientSession(trust_env=False)
        answer = await self.ask("POST", "/auth/login", {"username": "admin", "password": ADMIN_PASSWORD})
        self.session = str(answer["session_token"])
        self._headers = {"Authorization": f"Bearer {self.session}"}
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.close()

    async def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The answer to a request that must succeed."""
        data = None if body is None else json.dumps(body).encode()
        async with self._http.request(method, self._root + path, data=data, headers=self._headers) as response:
            answer = await response.json()
            assert response.status in {200, 201}, f"{method} {path}: {response.status} {answer}"
            return dict(answer)

    async def log(self, token_id: int) -> list[dict[str, Any]]:
        """All calls of a token, as the request log shows them."""
        calls: list[dict[str, Any]] = []
        page = ""
        while True:
            query = f"token_id={token_id}&page_size=1000" + (f"&page_token={page}" if page else "")
            answer = await self.ask("GET", f"/admin/logs/requests?{query}")
            calls += answer["requests"]
            page = answer["next_page_token"] or ""
            if not page:
                return calls
