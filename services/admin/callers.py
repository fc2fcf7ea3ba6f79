"""Who stands behind a call: in whose name it is made, from which address, with which program."""

from __future__ import annotations

import ipaddress

import grpc

from gateway.errors import Unauthenticated
from gateway.ids import is_canonical_uuid
from gateway.rpc.access import principal
from gateway.rpc.identity import caller_of
from gateway.rpc.interceptors import REQUEST_ID
from gateway.storage.audit import Actor
from gateway.storage.sessions import Session

CLIENT_IP = "x-client-ip"
USER_AGENT = "x-user-agent"

# These speak for others and say for whom; what anyone else puts into the metadata is not believed.
_DOORS = frozenset({"proxy", "operator"})


def actor(context: grpc.ServicerContext) -> Actor:
    """The one in whose name the call is made, as the audit log names it."""
    return Actor(principal().actor, client_ip(context), _request_id(context))


def own_session() -> Session:
    """The session that calls. Raises Unauthenticated for an identity that came without one."""
    session = principal().session
    if not isinstance(session, Session):
        raise Unauthenticated("log in first: this call is about the session that makes it")
    return session


def client_ip(context: grpc.ServicerContext) -> str:
    """The address that the call came from, as the door tells it, else the peer's; empty when not known."""
    told = _entry(context, CLIENT_IP) if caller_of(context).name in _DOORS else ""
    try:
        return str(ipaddress.ip_address(told or _peer_address(context.peer())))
    except ValueError:
        return ""


def user_agent(context: grpc.ServicerContext) -> str:
    """The program that the caller names; empty when not known."""
    return _entry(context, USER_AGENT)[:200]


def _request_id(context: grpc.ServicerContext) -> str:
    """The id of the request at the door; empty when there was none."""
    told = _entry(context, REQUEST_ID) if caller_of(context).name in _DOORS else ""
    return told if is_canonical_uuid(told) else ""


def _entry(context: grpc.ServicerContext, name: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""


def _peer_address(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0]
    return host.replace("%5B", "").replace("%5D", "").strip("[]") if kind in {"ipv4", "ipv6"} else ""
