"""SessionService: who an administrator is."""

from __future__ import annotations

import grpc

from gateway.clock import to_text
from gateway.errors import GatewayError
from gateway.pages import decode_page_token, page_limit
from gateway.storage.administrators import AdministratorStore
from gateway.storage.sessions import SessionStore
from gateway.stubs.admin.v1 import sessions_pb2, sessions_pb2_grpc
from services.admin.callers import actor, client_ip, own_session, user_agent
from services.admin.listing import fill_page
from services.admin.metrics import AdminMetrics
from services.admin.wire import kind_from_proto, session_to_proto

_LIST = "sessions"


class SessionServicer(sessions_pb2_grpc.SessionServiceServicer):
    """Opens and ends sessions, and changes passwords."""

    def __init__(self, *, administrators: AdministratorStore, sessions: SessionStore, metrics: AdminMetrics) -> None:
        self._metrics = metrics
        self._administrators = administrators
        self._sessions = sessions

    def Login(self, request: sessions_pb2.LoginRequest, context: grpc.ServicerContext) -> sessions_pb2.LoginResponse:
        """Opens a session for one who knows the password."""
        kind, address = kind_from_proto(request.kind), client_ip(context)
        try:
            administrator = self._administrators.prove(request.username, request.password, client_ip=address)
            secret, session = self._sessions.open(administrator, kind=kind, client_ip=address, user_agent=user_agent(context))
        except GatewayError as error:
            self._metrics.login(error)
            raise
        self._metrics.login(None)
        return sessions_pb2.LoginResponse(session_token=secret, session=session_to_proto(session))

    def Logout(self, request: sessions_pb2.LogoutRequest, context: grpc.ServicerContext) -> sessions_pb2.LogoutResponse:
        """Ends the session that calls."""
        session = own_session()
        self._sessions.revoke(session.administrator_id, session.id, actor=actor(context), action="session.logout")
        return sessions_pb2.LogoutResponse()

    def GetSession(
        self, request: sessions_pb2.GetSessionRequest, context: grpc.ServicerContext
    ) -> sessions_pb2.GetSessionResponse:
        """The session that calls."""
        return sessions_pb2.GetSessionResponse(session=session_to_proto(own_session()))

    def ListSessions(
        self, request: sessions_pb2.ListSessionsRequest, context: grpc.ServicerContext
    ) -> sessions_pb2.ListSessionsResponse:
        """A page of the caller's live sessions, the newest first."""
        limit = page_limit(request.page_size)
        after = decode_page_token(_LIST, request.page_token, str, str)
        before = None if after is None else (str(after[0]), str(after[1]))
        found = self._sessions.page(own_session().administrator_id, limit=limit + 1, before=before)
        sessions, next_page_token = fill_page(
            _LIST,
            found,
            limit=limit,
            to_message=session_to_proto,
            position=lambda session: (to_text(session.created_at), session.id),
        )
        return sessions_pb2.ListSessionsResponse(sessions=sessions, next_page_token=next_page_token)

    def RevokeSession(
        self, request: sessions_pb2.RevokeSessionRequest, context: grpc.ServicerContext
    ) -> sessions_pb2.RevokeSessionResponse:
        """Ends one of the caller's sessions."""
        self._sessions.revoke(own_session().administrator_id, request.id, actor=actor(context))
        return sessions_pb2.RevokeSessionResponse()

    def ChangePassword(
        self, request: sessions_pb2.ChangePasswordRequest, context: grpc.ServicerContext
    ) -> sessions_pb2.ChangePasswordResponse:
        """Changes the caller's password and ends the other sessions."""
        session = own_session()
        self._administrators.change_password(
            session.username,
            request.old_password,
            request.new_password,
            session_id=session.id,
            client_ip=client_ip(context),
        )
        return sessions_pb2.ChangePasswordResponse()

    def SetPassword(
        self, request: sessions_pb2.SetPasswordRequest, context: grpc.ServicerContext
    ) -> sessions_pb2.SetPasswordResponse:
        """Sets anyone's password."""
        self._administrators.set_password(request.username, request.new_password, actor=actor(context))
        return sessions_pb2.SetPasswordResponse()
