"""`/openapi.json` tells what the edge does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc.aio
import pytest

from gateway.stubs.admin.v1 import adjustments_pb2, audit_pb2, prices_pb2, requests_pb2, sessions_pb2, tokens_pb2, usage_pb2
from services.proxy import admin_books, admin_json, admin_log, openapi, openapi_admin, routes
from services.proxy.admin_http import AdminRoutes
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
        assert set(described["paths"]) == served | {routes.MODELS_PREFIX + "{id}"} | set(openapi_admin.PATHS)
        for reference in _references(described):
            assert reference.removeprefix("#/components/schemas/") in described["components"]["schemas"]
        for path, methods in described["paths"].items():
            for method, told in methods.items():
                assert edge.app._table.find(method.upper(), re.sub(r"\{\w+\}", "x", path))
                for kind in told.get("security", ()):
                    assert set(kind) <= set(described["components"]["securitySchemes"])


async def test_administration_is_described_where_it_is_answered_and_nowhere_else() -> None:
    async with running_edge(admin_http="off") as edge, edge.session.get(edge.url + "/openapi.json") as response:
        assert not set((await response.json())["paths"]) & set(openapi_admin.PATHS)
    apart = openapi.document(applications=False)["paths"]
    assert set(apart) == {*openapi_admin.PATHS, routes.HEALTH, routes.READINESS}


async def test_the_description_of_administration_names_each_route_of_its_door() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        door = AdminRoutes(channel=channel)
        served = {path.replace("*", "{id}"): {method.lower() for method in methods} for path, methods in door._routes.items()}
    assert {path: set(methods) for path, methods in openapi_admin.PATHS.items()} == served


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ("Token", admin_json.token_to_json(tokens_pb2.Token())),
        ("Session", admin_json.session_to_json(sessions_pb2.Session())),
        ("Call", admin_log.request_to_json(requests_pb2.RequestRecord())),
        ("Refusal", admin_log.refusal_to_json(requests_pb2.RefusalRecord())),
        ("Customer", admin_json.customer_to_json(usage_pb2.CustomerUsage())),
        ("Adjustment", admin_books.adjustment_to_json(adjustments_pb2.Adjustment())),
        ("BookedAdjustment", admin_books.booked_to_json(adjustments_pb2.CreateAdjustmentResponse())),
        ("Price", admin_books.price_to_json(prices_pb2.Price())),
        ("AuditRecord", admin_json.audit_to_json(audit_pb2.AuditRecord())),
    ],
)
def test_the_records_of_administration_hold_what_the_description_requires(schema: str, answer: dict[str, Any]) -> None:
    assert set(openapi_admin.SCHEMAS[schema]["required"]) == set(answer)


def test_what_the_door_of_administration_reads_is_what_is_described() -> None:
    schemas = openapi_admin.SCHEMAS
    assert set(schemas["TokenCreation"]["properties"]) == set(admin_json._CREATABLE)
    assert set(schemas["TokenUpdate"]["properties"]) == set(admin_json._UPDATABLE)
    assert set(schemas["AdjustmentCreation"]["properties"]) == set(admin_books.ADJUSTMENT)
    assert set(schemas["PriceCreation"]["properties"]) == set(admin_books.PRICE)
    prices = openapi_admin.PATHS["/admin/prices"]["get"]
    assert [parameter["name"] for parameter in prices["parameters"]] == list(admin_books.PRICE_PARAMETERS)
    log = openapi_admin.PATHS["/admin/logs/requests"]["get"]
    assert [parameter["name"] for parameter in log["parameters"]] == list(admin_log.LOG_PARAMETERS)


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
