"""IdentityService: revokes certificates of this installation."""

from __future__ import annotations

import time

import grpc

from gateway.errors import InvalidArgument
from gateway.rpc.identity import SERVERS, is_name
from gateway.storage.revoked_identities import IN_FORCE_AFTER, RevokedIdentity, RevokedIdentityStore
from gateway.stubs.admin.v1 import identities_pb2 as pb
from gateway.stubs.admin.v1 import identities_pb2_grpc
from services.admin.callers import actor
from services.admin.wire import moment_from_proto, moment_to_proto


class IdentityServicer(identities_pb2_grpc.IdentityServiceServicer):
    """Revokes in the name of the one who calls, and lists."""

    def __init__(self, *, revoked: RevokedIdentityStore) -> None:
        self._revoked = revoked

    def RevokeIdentity(self, request: pb.RevokeIdentityRequest, context: grpc.ServicerContext) -> pb.RevokeIdentityResponse:
        """Revokes, and answers when every auth and admin has had the time to read of it."""
        if not is_name(request.name) or request.name in SERVERS:
            raise InvalidArgument(
                "name is that of an internal service, proxy or operator: clients have no other", metadata={"param": "name"}
            )
        until = moment_from_proto(request.issued_until, "issued_until") if request.HasField("issued_until") else None
        revoked = self._revoked.revoke(request.name, until, actor=actor(context))
        time.sleep(IN_FORCE_AFTER)
        return pb.RevokeIdentityResponse(identity=_to_proto(revoked))

    def ListRevokedIdentities(
        self, request: pb.ListRevokedIdentitiesRequest, context: grpc.ServicerContext
    ) -> pb.ListRevokedIdentitiesResponse:
        """All names."""
        return pb.ListRevokedIdentitiesResponse(identities=[_to_proto(one) for one in self._revoked.all()])


def _to_proto(revoked: RevokedIdentity) -> pb.RevokedIdentity:
    return pb.RevokedIdentity(
        name=revoked.name,
        issued_until=moment_to_proto(revoked.issued_until),
        revoked_at=moment_to_proto(revoked.revoked_at),
        actor=revoked.actor,
    )
