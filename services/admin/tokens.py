"""TokenService: client tokens, as administrators manage them."""

from __future__ import annotations

import grpc

from gateway.client_tokens import expiry_warnings, model_warnings
from gateway.clock import Clock
from gateway.pages import decode_page_token, page_limit
from gateway.storage.tokens import TokenStore
from gateway.stubs.admin.v1 import tokens_pb2, tokens_pb2_grpc
from services.admin.callers import actor
from services.admin.listing import fill_page, filter_text
from services.admin.wire import changes_from_proto, new_token_from_proto, token_to_proto

_LIST = "tokens"


class TokenServicer(tokens_pb2_grpc.TokenServiceServicer):
    """Reads and writes tokens through the store, each change in the name of the one who calls."""

    def __init__(self, *, tokens: TokenStore, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock

    def CreateToken(
        self, request: tokens_pb2.CreateTokenRequest, context: grpc.ServicerContext
    ) -> tokens_pb2.CreateTokenResponse:
        """Makes a token and tells its secret, once."""
        new = new_token_from_proto(request)
        issued = self._tokens.create(new, actor=actor(context), request_id=request.request_id)
        now = self._clock.now()
        return tokens_pb2.CreateTokenResponse(
            token=token_to_proto(issued.token, now),
            secret=issued.secret or "",
            warnings=expiry_warnings(new.expires_at, now) + model_warnings(new.allowed_models, self._tokens.served_models()),
        )

    def GetToken(self, request: tokens_pb2.GetTokenRequest, context: grpc.ServicerContext) -> tokens_pb2.GetTokenResponse:
        """One token."""
        token = self._tokens.get(request.id)
        return tokens_pb2.GetTokenResponse(token=token_to_proto(token, self._clock.now()))

    def ListTokens(self, request: tokens_pb2.ListTokensRequest, context: grpc.ServicerContext) -> tokens_pb2.ListTokensResponse:
        """A page of tokens, the newest first."""
        limit = page_limit(request.page_size)
        after = decode_page_token(_LIST, request.page_token, int)
        found = self._tokens.page(
            limit=limit + 1,
            before_id=None if after is None else int(after[0]),
            name_contains=filter_text("name_contains", request.name_contains),
            customer=filter_text("customer", request.customer),
        )
        now = self._clock.now()
        tokens, next_page_token = fill_page(
            _LIST, found, limit=limit, to_message=lambda token: token_to_proto(token, now), position=lambda token: (token.id,)
        )
        return tokens_pb2.ListTokensResponse(tokens=tokens, next_page_token=next_page_token)

    def UpdateToken(
        self, request: tokens_pb2.UpdateTokenRequest, context: grpc.ServicerContext
    ) -> tokens_pb2.UpdateTokenResponse:
        """Changes the fields that the mask names."""
        changes = changes_from_proto(request)
        token = self._tokens.update(request.token.id, changes, version=request.token.version, actor=actor(context))
        now = self._clock.now()
        return tokens_pb2.UpdateTokenResponse(
            token=token_to_proto(token, now),
            warnings=expiry_warnings(changes.get("expires_at"), now)
            + model_warnings(changes.get("allowed_models") or (), self._tokens.served_models()),
        )

    def SetTokenEnabled(
        self, request: tokens_pb2.SetTokenEnabledRequest, context: grpc.ServicerContext
    ) -> tokens_pb2.SetTokenEnabledResponse:
        """Switches a token on, off, or the other way round."""
        wanted = request.enabled if request.HasField("enabled") else None
        token = self._tokens.set_enabled(request.id, wanted, actor=actor(context))
        return tokens_pb2.SetTokenEnabledResponse(token=token_to_proto(token, self._clock.now()))

    def RotateToken(
        self, request: tokens_pb2.RotateTokenRequest, context: grpc.ServicerContext
    ) -> tokens_pb2.RotateTokenResponse:
        """Gives a token a new secret and tells it, once."""
        issued = self._tokens.rotate(
            request.id, actor=actor(context), request_id=request.request_id, grace_seconds=request.grace_seconds
        )
        return tokens_pb2.RotateTokenResponse(token=token_to_proto(issued.token, self._clock.now()), secret=issued.secret or "")

    def TopUpToken(self, request: tokens_pb2.TopUpTokenRequest, context: grpc.ServicerContext) -> tokens_pb2.TopUpTokenResponse:
        """Raises a token's budget."""
        done = self._tokens.top_up(request.id, request.amount_nanos, actor=actor(context), request_id=request.request_id)
        return tokens_pb2.TopUpTokenResponse(token=token_to_proto(done.token, self._clock.now()), revived=done.revived)

    def DeleteToken(
        self, request: tokens_pb2.DeleteTokenRequest, context: grpc.ServicerContext
    ) -> tokens_pb2.DeleteTokenResponse:
        """Deletes a token."""
        self._tokens.delete(request.id, actor=actor(context))
        return tokens_pb2.DeleteTokenResponse()
