"""The way to auth: who may call, and which addresses present too many unknown tokens for auth to be asked about more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Refusal, TokenUnknown
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.books import Auth
from services.proxy.credentials import Strangers
from services.proxy.outbox import token_key


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
        with self._judging(token, address):
            await self._auth.validate(request, arrived=arrived)

    async def admit(self, request: pb.ValidateTokenRequest, arrived: float) -> pb.Grant:
        """Admits a call. Raises the refusal. Auth's client withdraws an admission that nobody waits for any more."""
        with self._judging(request.token, request.client_ip):
            return await self._auth.validate(request, arrived=arrived)

    async def usage(self, token: str, address: str, *, details: bool) -> pb.GetTokenUsageResponse:
        """A token's books. Raises the refusal."""
        with self._judging(token, address):
            return await self._auth.token_usage(token, address, details)

    async def models(self, request: pb.ListModelsRequest) -> list[pb.Model]:
        """The models that a token may use, sorted by name. Raises the refusal."""
        with self._judging(request.token, request.client_ip):
            response = await self._auth.list_models(request)
        return list(response.models)

    @contextmanager
    def _judging(self, token: str, address: str) -> Iterator[None]:
        """While auth is asked about a token. Raises RateLimited before, where an address may ask about it no more."""
        key = token_key(token)
        self._strangers.check(address, key)
        try:
            yield
        except TokenUnknown:
            self._strangers.note(address, key)
            raise
        except Refusal:
            self._strangers.recognize(key)
            raise
        self._strangers.recognize(key)
