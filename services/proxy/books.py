"""What the edge needs of those who keep the books: auth, which admits calls, and the outbox, which takes how they ended."""

from __future__ import annotations

from typing import Protocol

from gateway.stubs.auth.v1 import auth_pb2 as pb


class Auth(Protocol):
    """The auth service, as `auth_client.AuthClient` speaks to it. A denial is raised as the `Refusal` of its reason."""

    @property
    def ready(self) -> bool:
        """Whether it answered within the last 5 s."""
        ...

    @property
    def waiting(self) -> int:
        """How many calls wait for their decision."""
        ...

    async def validate(self, request: pb.ValidateTokenRequest, *, arrived: float) -> pb.Grant:
        """Decides a call. arrived: the loop's time at which the request came. Raises Refusal, AuthUnavailable, Overloaded."""
        ...

    async def token_usage(self, token: str, client_ip: str, details: bool) -> pb.GetTokenUsageResponse:
        """A token's books. Raises TokenUnknown, IpNotAllowed, AuthUnavailable."""
        ...

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """The models that a token may use. Raises Refusal, AuthUnavailable."""
        ...


class Outbox(Protocol):
    """The outbox, as `outbox.Outbox` keeps it."""

    @property
    def writable(self) -> bool:
        """Whether a call that is made now could be written down."""
        ...

    def opened(self, request_id: str, token_key: bytes) -> None:
        """Notes that a call may go upstream. Raises OutboxUnavailable."""
        ...

    def progress(self, request_id: str, usage: pb.RecordUsageRequest) -> None:
        """Notes how far a stream is."""
        ...

    def append(self, settlement: pb.RecordUsageRequest, token_key: bytes) -> None:
        """Takes how a call ended. Never raises."""
        ...

    async def kept(self, request_id: str) -> None:
        """Waits, for a moment at the most, until how a call ended outlives this process."""
        ...
