"""`/openapi.json` tells what the edge does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from services.proxy import openapi, routes
from services.proxy.dialects import openai
from services.proxy.dialects.openai import read_chat
from services.proxy.strict_json import Document
from tests.proxy.edge_harness import chat, running_edge


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


async def test_the_description_names_each_route_and_every_reference_leads_somewhere() -> None:
    async with running_edge() as edge:
        async with edge.session.get(edge.url + "/openapi.json") as response:
            described = await response.json()
        served = set(edge.app._table.paths) - {routes.ROOT, routes.DESCRIPTION}
        assert set(described["paths"]) == served | {routes.MODELS_PREFIX + "{id}"}
        for reference in _references(described):
            assert reference.removeprefix("#/components/schemas/") in described["components"]["schemas"]
        for path, methods in described["paths"].items():
            for method in methods:
                assert edge.app._table.find(method.upper(), re.sub(r"\{\w+\}", "x", path))


async def test_the_answers_hold_what_the_description_requires() -> None:
    schemas = openapi.document()["components"]["schemas"]
    async with running_edge() as edge:
        for path, name in (("/v1/models", "Models"), ("/v1/token/usage", "Usage"), ("/v1/token/balance", "Balance")):
            async with edge.get(path) as response:
                assert set(await response.json()) == set(schemas[name]["required"])
        async with edge.session.get(edge.url + "/v1/models") as response:
            error = (await response.json())["error"]
        assert set(error) == set(schemas["Error"]["properties"]["error"]["required"])


def test_the_described_request_is_one_that_is_read() -> None:
    described = openapi.document()["components"]["schemas"]["ChatCompletionRequest"]
    assert set(described["properties"]) == {"model", "messages", "stream", "stream_options", "n", *openai.LIMITS}
    assert set(described["required"]) == {"model", "messages"}
    assert read_chat(Document(b"{}", chat())).model == "mock"
