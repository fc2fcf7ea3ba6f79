"""The typed client for internal services: asks auth whether a call may be made, and reports what it used.

`Gateway` for threads, `AsyncGateway` for asyncio. Needs grpcio and protobuf, and nothing else of this project's requirements.
Neighbours: `gateway.client.testing` has fakes for the tests of services that use it, `gateway.client.grpc_guard` and
`gateway.client.aiohttp_guard` put it in front of handlers; refusals are the classes of `gateway.errors`.
"""

from gateway.client.aio import AsyncCall, AsyncGateway
from gateway.client.credentials import Credentials
from gateway.client.results import Grant, ModelUsage, Price, Receipt, RecentCall, TokenUsage, Undelivered
from gateway.client.sync import Call, Gateway
from gateway.client.terms import CallTerms, ModelTerms, UsageTerms, text_ceiling
from gateway.usage import Outcome, Source, State

__all__ = [
    "AsyncCall",
    "AsyncGateway",
    "Call",
    "CallTerms",
    "Credentials",
    "Gateway",
    "Grant",
    "ModelTerms",
    "ModelUsage",
    "Outcome",
    "Price",
    "Receipt",
    "RecentCall",
    "Source",
    "State",
    "TokenUsage",
    "Undelivered",
    "UsageTerms",
    "text_ceiling",
]
