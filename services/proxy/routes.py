"""The edge's routes: exact paths, each with its methods. What is not here does not exist."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from gateway.errors import MethodNotAllowed, RouteNotFound
from services.proxy.dialects import openai
from services.proxy.exchange import Exchange
from services.proxy.models_route import PREFIX as MODELS_PREFIX

Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]
Methods = Mapping[str, Handler]

ADMIN_PREFIXES = ("/admin", "/auth")
MODELS = "/v1/models"
TOKEN_USAGE = "/v1/token/usage"  # noqa: S105 - a path
TOKEN_BALANCE = "/v1/token/balance"  # noqa: S105 - a path
HEALTH = "/healthz"
READINESS = "/readyz"
DESCRIPTION = "/openapi.json"
ROOT = "/"
CHAT = openai.CHAT

_NAMES = {
    CHAT: "chat",
    MODELS: "models",
    TOKEN_USAGE: "token_usage",
    TOKEN_BALANCE: "token_balance",
    HEALTH: "health",
    READINESS: "readiness",
    DESCRIPTION: "description",
    ROOT: "root",
}
ENDPOINTS = (*_NAMES.values(), "admin", "other")
"""What `endpoint` may give."""

# A name of a model: segments of unreserved characters, `:`, `@`, `+` and escaped `/`, `:`, `@`; none of them only dots.
_MODEL_NAME = re.compile(
    r"(?!\.{1,2}(?:/|%2[fF]|$))(?:[A-Za-z0-9._:@+~-]|%3[aA]|%40|(?:/|%2[fF])(?!/|%2[fF]|\.{1,2}(?:/|%2[fF]|$)))+"
)


class Table:
    """Finds the handler of a request.

    exact: for each path its methods. model: the methods of `/v1/models/{id}`. admin: takes everything under `/admin`, `/auth`.
    None: there is nothing of the kind.
    """

    def __init__(self, exact: Mapping[str, Methods], *, model: Methods | None = None, admin: Handler | None = None) -> None:
        self._exact = exact
        self._model = model
        self._admin = admin

    @property
    def paths(self) -> tuple[str, ...]:
        """The exact paths."""
        return tuple(self._exact)

    def find(self, method: str, path: str) -> Handler:
        """The handler. Raises RouteNotFound, MethodNotAllowed with the methods in its metadata.

        path: as it stands in the request line, without the query. Nothing of it is decoded, folded or resolved.
        """
        methods = self._exact.get(path)
        if methods is None:
            if path.startswith(MODELS_PREFIX) and _MODEL_NAME.fullmatch(path, len(MODELS_PREFIX)) is not None:
                methods = self._model
            elif self._admin is not None and path.startswith(ADMIN_PREFIXES) and _is_below(path):
                return self._admin
            if methods is None:
                raise RouteNotFound("There is no such route.")
        handler = methods.get(method)
        if handler is None:
            raise MethodNotAllowed(
                f"This route does not take the method {method[:20] if method.isalpha() else 'of this request'}.",
                metadata={"allow": ", ".join(sorted({*methods, "OPTIONS"}))},
            )
        return handler


def endpoint(path: str) -> str:
    """A short name for what a path leads to, for metrics: one of `ENDPOINTS`, whatever a caller sends."""
    name = _NAMES.get(path)
    if name is None:
        if path.startswith(MODELS_PREFIX):
            return "models"
        return "admin" if path.startswith(ADMIN_PREFIXES) and _is_below(path) else "other"
    return name


def _is_below(path: str) -> bool:
    """Whether a path is `/admin`, `/auth` or under them, and written plainly."""
    if not any(path == prefix or path.startswith(prefix + "/") for prefix in ADMIN_PREFIXES):
        return False
    return all(segment and segment.strip(".") and "%" not in segment and ";" not in segment for segment in path[1:].split("/"))
