"""The way through auth: who may call, and what becomes of a decision that nobody waits for any more."""

from __future__ import annotations

from gateway.errors import TokenUnknown
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.books import Auth
from services.proxy.credentials import Strangers


class Gate:
    """Asks auth, and counts the addresses that present unknown tokens.

    auth: the auth service, which takes back an admission that nobody waits for any more.
    """

    def __init__(self, *, auth: Auth, strangers: Strangers) -> None:
        self._auth = auth
        self._strangers = strangers

    async def look(self, token: str, address: str, arrived: float, request_id: str, model: str = "") -> None:
        """Judges a token, and a model's name with it; nothing is held. Raises the refusal.

        request_id: as the caller is told, under which auth keeps the refusal.
        """
        request = pb.ValidateTokenRequest(token=token, client_ip=address, request_model=model, look_id=request_id)
        try:
            await self._auth.validate(request, arrived=arrived)
        except TokenUnknown:
            self._strangers.note(address)
            raise

    async def admit(self, request: pb.ValidateTokenRequest, arrived: float) -> pb.Grant:
        """Admits a call. Raises the refusal. Auth's client withdraws an admission that nobody waits for any more."""
        try:
            return await self._auth.validate(request, arrived=arrived)
        except TokenUnknown:
            self._strangers.note(request.client_ip)
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
