"""Gateways for the tests of services that use the client: the same methods, exceptions and figures, without a server.

    gateway = FakeGateway()
    gateway.add_token("a-token", max_amount="1.00")
    gateway.set_price("summary", input="1", output="2")
    with gateway.call("a-token", model="summary", input_text="…") as call:
        call.usage(input_tokens=3, output_tokens=5)

`gateway.away = True` is an outage; `gateway.skip(600)` lets a lease end; `gateway.calls` tells what was booked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from gateway.client.aio import AsyncGateway
from gateway.client.connection import Connection, Line
from gateway.client.credentials import Credentials
from gateway.client.faults import Faults
from gateway.client.memory import MemoryAuth, MemoryCall
from gateway.client.pending import MOST_PENDING
from gateway.client.sync import Gateway
from gateway.errors import PermissionDenied
from gateway.stubs.auth.v1 import auth_pb2 as pb

if TYPE_CHECKING:
    from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceAsyncStub, AuthServiceStub

_ADDRESS = "memory"
_NOBODY = Credentials("", b"", b"", b"", datetime.max.replace(tzinfo=UTC))
_TIMEOUT = 0.05  # what a test waits for a gateway that is away


class _SyncStub:
    """The RPCs that the client calls, answered from memory."""

    def __init__(self, auth: MemoryAuth) -> None:
        self._auth = auth

    def ValidateToken(self, request: pb.ValidateTokenRequest, **_: Any) -> pb.ValidateTokenResponse:
        return self._auth.validate(request)

    def RecordUsage(self, request: pb.RecordUsageRequest, **_: Any) -> pb.RecordUsageResponse:
        return self._auth.record(_without_rights(request))

    def RenewLease(self, request: pb.RenewLeaseRequest, **_: Any) -> pb.RenewLeaseResponse:
        return self._auth.renew(request.request_ids)

    def GetTokenUsage(self, request: pb.GetTokenUsageRequest, **_: Any) -> pb.GetTokenUsageResponse:
        return self._auth.books(request)


class _AsyncStub:
    """The same for asyncio."""

    def __init__(self, auth: MemoryAuth) -> None:
        self._stub = _SyncStub(auth)

    async def ValidateToken(self, request: pb.ValidateTokenRequest, **_: Any) -> pb.ValidateTokenResponse:
        return self._stub.ValidateToken(request)

    async def RecordUsage(self, request: pb.RecordUsageRequest, **_: Any) -> pb.RecordUsageResponse:
        return self._stub.RecordUsage(request)

    async def RenewLease(self, request: pb.RenewLeaseRequest, **_: Any) -> pb.RenewLeaseResponse:
        return self._stub.RenewLease(request)

    async def GetTokenUsage(self, request: pb.GetTokenUsageRequest, **_: Any) -> pb.GetTokenUsageResponse:
        return self._stub.GetTokenUsage(request)


class _Memory:
    """What both fakes add to their client."""

    def __init__(self, auth: MemoryAuth | None) -> None:
        self._auth = MemoryAuth() if auth is None else auth

    @property
    def away(self) -> bool:
        """Whether auth is down. Set it to see what the service does then."""
        return self._auth.away

    @away.setter
    def away(self, away: bool) -> None:
        self._auth.away = away

    @property
    def calls(self) -> Mapping[str, MemoryCall]:
        """Every admitted call by its request id, in order, with its state, cost and usage."""
        return self._auth.calls

    def add_token(
        self,
        token: str,
        *,
        max_amount: Decimal | str | float | None = None,
        models: str = "",
        expires_at: str | None = None,
        enabled: bool = True,
        strict: bool = True,
    ) -> int:
        """Adds a token or replaces it, and gives its id. max_amount: its budget in currency units; None: none.

        models: comma-separated names, `*` as a wildcard; empty: all.
        """
        return self._auth.add_token(
            token, max_amount=max_amount, models=models, expires_at=expires_at, enabled=enabled, strict=strict
        )

    def set_price(
        self,
        model: str,
        *,
        provider: str = "",
        context_window: int | None = None,
        max_output_tokens: int | None = None,
        **rates: str,
    ) -> None:
        """Gives a model a price. rates: decimals in quotes, per million tokens for `input` and `output`."""
        self._auth.set_price(
            model, provider=provider, context_window=context_window, max_output_tokens=max_output_tokens, **rates
        )

    def skip(self, seconds: float) -> None:
        """Lets time pass. Calls whose lease ends meanwhile expire: they are charged their hold, for now."""
        self._auth.skip(seconds)


class FakeGateway(_Memory, Gateway):
    """A `Gateway` over tokens and prices in memory. timeout: seconds that a caller waits while it is away."""

    def __init__(self, *, auth: MemoryAuth | None = None, timeout: float = _TIMEOUT, max_pending: int = MOST_PENDING) -> None:
        _Memory.__init__(self, auth)
        stub = cast(Any, _SyncStub(self._auth))
        line: Line[AuthServiceStub, None] = Line(stub, lambda: None, Faults(_ADDRESS, None))
        self._connect(Connection(lambda _: line, _NOBODY), timeout, max_pending)


class AsyncFakeGateway(_Memory, AsyncGateway):
    """An `AsyncGateway` over tokens and prices in memory. timeout: seconds that a caller waits while it is away."""

    def __init__(self, *, auth: MemoryAuth | None = None, timeout: float = _TIMEOUT, max_pending: int = MOST_PENDING) -> None:
        _Memory.__init__(self, auth)
        stub = cast(Any, _AsyncStub(self._auth))
        line: Line[AuthServiceAsyncStub, Awaitable[None]] = Line(stub, _nothing, Faults(_ADDRESS, None))
        self._connect(Connection(lambda _: line, _NOBODY), timeout, max_pending)


async def _nothing() -> None:
    """There is no connection to close."""


def _without_rights(request: pb.RecordUsageRequest) -> pb.RecordUsageRequest:
    if request.token_id:
        raise PermissionDenied("reporting a call that was never admitted needs the right record_unadmitted")
    return request
