"""The way through auth: who may call, and what becomes of a decision that nobody waits for any more."""

from __future__ import annotations

import asyncio

from gateway.errors import AuthUnavailable, TokenUnknown
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.books import Auth, Outbox
from services.proxy.credentials import Strangers


class Gate:
    """Asks auth, and counts the addresses that present unknown tokens.

    auth: the auth service. outbox: takes the release of a call whose admission nobody waits for.
    """

    def __init__(self, *, auth: Auth, outbox: Outbox, strangers: Strangers) -> None:
        self._auth = auth
        self._outbox = outbox
        self._strangers = strangers

    async def look(self, token: str, address: str, arrived: float, model: str = "") -> None:
        """Judges a token, and a model's name with it; nothing is held. Raises the refusal."""
        request = pb.ValidateTokenRequest(token=token, client_ip=address, request_model=model)
        try:
            await self._auth.validate(request, arrived=arrived)
        except TokenUnknown:
            self._strangers.note(address)
            raise

    async def admit(self, request: pb.ValidateTokenRequest, arrived: float, token_key: bytes) -> pb.Grant:
        """Admits a call. Raises the refusal.

        When the caller goes away meanwhile, or auth does not answer in time, the admission may still come to be: it is
        released, and auth remembers that should the admission come later.
        """
        try:
            return await self._auth.validate(request, arrived=arrived)
        except TokenUnknown:
            self._strangers.note(request.client_ip)
            raise
        except (asyncio.CancelledError, AuthUnavailable):
            self._outbox.append(
                pb.RecordUsageRequest(
                    request_id=request.request_id,
                    outcome=pb.OUTCOME_RELEASED,
                    source=pb.USAGE_SOURCE_NONE,
                    error_code="not_sent",
                ),
                token_key,
            )
            raise

    async def usage(self, token: str, address: str, *, details: bool) -> pb.GetTokenUsageResponse:
        """A token's books. Raises the refusal."""
        try:
            return await self._auth.token_usage(token, address, details)
        except TokenUnknown:
            self._strangers.note(address)
            raise

    async def models(self, request: pb.ListModelsRequest) -> list[pb.Model]:
        """The models that a token may use, sorted by name. Raises the refusal."""
        try:
            response = await self._auth.list_models(request)
        except TokenUnknown:
            self._strangers.note(request.client_ip)
            raise
        return list(response.models)
