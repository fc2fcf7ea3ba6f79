"""`GET /v1/models` and `/v1/models/{id}`: what this token may use."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from urllib.parse import unquote

from aiohttp import web

from gateway.errors import ModelNotFound
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.answers import json_answer
from services.proxy.credentials import client_token
from services.proxy.exchange import Exchange
from services.proxy.gate import Gate
from services.proxy.providers.registry import Registry

PREFIX = "/v1/models/"
_LONGEST_NAME = 64
_MOST_NAMES = 500
_ALIKE = 0.6


class ModelsRoute:
    """The handlers."""

    def __init__(self, *, gate: Gate, registry: Registry) -> None:
        self._gate = gate
        self._registry = registry

    async def index(self, exchange: Exchange) -> web.StreamResponse:
        """All of them, sorted by name. Raises GatewayError."""
        return json_answer({"object": "list", "data": [_model(model) for model in await self.usable(exchange)]})

    async def get(self, exchange: Exchange) -> web.StreamResponse:
        """One of them. Its name may hold `/` and `:`, escaped or not. Raises GatewayError."""
        name = unquote(exchange.request.raw_path.partition("?")[0].removeprefix(PREFIX))
        models = await self.usable(exchange)
        for model in models:
            if model.name == name:
                return json_answer(_model(model))
        raise not_found(name, models)

    async def usable(self, exchange: Exchange) -> list[pb.Model]:
        """The models that the caller's token may use, by name. Raises GatewayError."""
        request = pb.ListModelsRequest(
            token=client_token(exchange.request.headers),
            client_ip=exchange.address,
            providers=self._registry.models(),
            names=self._registry.aliases,
        )
        return await self._gate.models(request)


def not_found(name: str, usable: Sequence[pb.Model]) -> ModelNotFound:
    """What tells a caller that there is no such model for them, with the nearest name of those that they may use.

    Long names get no suggestion, and of very many models the first ones are looked at: comparing takes some 20 us a name.
    """
    near: list[str] = []
    if len(name) <= _LONGEST_NAME:
        near = get_close_matches(name, [model.name for model in usable[:_MOST_NAMES]], n=1, cutoff=_ALIKE)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return ModelNotFound(f"No provider serves the model {name!r}.{guess} GET /v1/models lists the models that you can use.")


def _model(model: pb.Model) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": model.provider}
