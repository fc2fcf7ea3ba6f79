"""`GET /v1/models` and `/v1/models/{id}`: what this token may use."""

from __future__ import annotations

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


class ModelsRoute:
    """The handlers."""

    def __init__(self, *, gate: Gate, registry: Registry) -> None:
        self._gate = gate
        self._registry = registry

    async def index(self, exchange: Exchange) -> web.StreamResponse:
        """All of them, sorted by name. Raises GatewayError."""
        return json_answer({"object": "list", "data": [_model(model) for model in await self._models(exchange)]})

    async def get(self, exchange: Exchange) -> web.StreamResponse:
        """One of them. Its name may hold `/` and `:`, escaped or not. Raises GatewayError."""
        name = unquote(exchange.request.raw_path.partition("?")[0].removeprefix(PREFIX))
        for model in await self._models(exchange):
            if model.name == name:
                return json_answer(_model(model))
        raise ModelNotFound("There is no such model that you can use. GET /v1/models lists those that you can.")

    async def _models(self, exchange: Exchange) -> list[pb.Model]:
        request = pb.ListModelsRequest(
            token=client_token(exchange.request.headers),
            client_ip=exchange.address,
            providers=self._registry.models(),
            names=self._registry.aliases,
        )
        return await self._gate.models(request)


def _model(model: pb.Model) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": model.provider}
