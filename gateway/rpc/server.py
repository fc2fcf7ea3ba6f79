"""A gRPC server as every service has it: mutual TLS only, rights, health, reflection, errors as statuses."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.rpc.access import (
    AccessError,
    AccessTable,
    CheckSession,
    Guard,
    IssuedUntil,
    Rule,
    check_rows,
    methods_of,
    none_revoked,
)
from gateway.rpc.channel import KEEPALIVE_TIMEOUT_MS, MAX_MESSAGE_BYTES
from gateway.rpc.identity import Identity
from gateway.rpc.interceptors import Observe, Streams, nobody, wrap
from gateway.rpc.renewal import Renewal

OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Without this two servers share a port in silence, and half of the calls go to the wrong one.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Our clients ping every 10 s, with or without calls, and gRPC adds pings of its own. A server that counts them answers
    # GOAWAY `too_many_pings` now and then, and whoever gets this far has a certificate.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A client looks its server's name up again when a connection ends: so replicas that came later get their share within
    # half a minute (gRPC spreads it by a tenth). No call notices; the tests let connections grow 100 ms old.
    ("grpc.max_connection_age_ms", 30_000),
    ("grpc.max_connection_age_grace_ms", 120_000),
)

_EVERYONE: Final = Rule(anyone=True)


class BindError(Exception):
    """The server cannot listen where it should; the message says where and why."""


class Server(grpc.Server):
    """A server that opens no port without mutual TLS and serves no method without a row in its table of rights.

    health: what gRPC's health service answers, and `serving`, for the internal HTTP port.
    """

    def __init__(
        self, server: grpc.Server, access: AccessTable, guard: Guard, services: Sequence[str], observe: Observe = nobody
    ) -> None:
        self._server = server
        self._access: Mapping[str, Rule] = access
        self._guard = guard
        self._services = tuple(services)
        self._observe = observe
        self._streams = Streams()
        self._health = health.HealthServicer(experimental_non_blocking=True)
        self._serving = threading.Event()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self)
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self)
        self._tell_health()

    @property
    def serving(self) -> bool:
        """Whether this server says of itself that it is ready."""
        return self._serving.is_set()

    def set_serving(self, serving: bool) -> None:
        """Says whether this server is ready: SERVING or NOT_SERVING for each of its services and for the whole."""
        if serving != self._serving.is_set():
            self._serving.set() if serving else self._serving.clear()
            self._tell_health()

    def _tell_health(self) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if self.serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._services):
            self._health.set(name, status)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Adds the methods of a service, each with its rule around it. Raises AccessError for one without a row."""
        wrapped = {}
        for name, handler in method_handlers.items():
            method = f"/{service_name}/{name}"
            rule = _INFRASTRUCTURE.get(method) or self._access.get(method)
            if rule is None:
                raise AccessError(f"the table of rights has no row for {method}")
            wrapped[name] = wrap(method, handler, rule, self._guard, self._streams, self._observe)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, wrapped),))
        self._server.add_registered_method_handlers(service_name, wrapped)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        """Nothing: generated code gives every method to `add_registered_method_handlers` too, where it meets its rule."""

    def add_insecure_port(self, address: str) -> int:
        """Refused: every port has mutual TLS."""
        raise BindError(f"{address}: a port without mutual TLS is never opened")

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Opens a port. Use `bind`, which requires the client's certificate."""
        return self._server.add_secure_port(address, server_credentials)

    def start(self) -> None:
        """Starts to answer. Health says NOT_SERVING until `set_serving`."""
        self._server.start()

    def stop(self, grace: float | None) -> threading.Event:
        """Takes no more calls and gives those that run `grace` seconds; the event is set as soon as none is left.

        Streams that are marked `cut_on_stop`, health's and reflection's end at once.
        """
        self.set_serving(False)
        done = self._server.stop(grace)
        self._streams.cut()
        return done

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Waits until the server has stopped; True when the time is up before."""
        return self._server.wait_for_termination(timeout)


def build_server(
    identity: Identity,
    services: Sequence[str],
    access: AccessTable,
    *,
    threads: int = 16,
    check_session: CheckSession | None = None,
    revoked: IssuedUntil = none_revoked,
    observe: Observe = nobody,
) -> Server:
    """A server for the given services, to which their servicers are still to be added.

    identity: whose certificate it shows; `bind` takes it. services: full names, such as `gateway.auth.v1.AuthService`.
    access: a row for each of their methods. threads: how many calls run at once; 64 times as many may wait, any more get
    RESOURCE_EXHAUSTED. check_session: reads sessions, for tables whose rules name roles.
    revoked: which certificates are no longer valid. observe: told of each RPC that ended.
    Raises AccessError when table and services do not match.
    """
    check_rows(services, access)
    if check_session is None and any(rule.roles for rule in access.values()):
        raise AccessError("the table of rights names roles, and nothing was given that reads sessions")
    server = grpc.server(
        futures.ThreadPoolExecutor(threads, thread_name_prefix=f"{identity.name}-rpc"),
        options=OPTIONS,
        maximum_concurrent_rpcs=threads * 65,
    )
    return Server(server, access, Guard(check_session, revoked), services, observe)


def bind(server: Server, listen: str, identity: Identity, *, renewal: Renewal | None = None) -> int:
    """Opens a port that asks every client for a certificate of this installation, and gives its number.

    listen: `host:port`; port 0 takes a free one. renewal: where renewed certificates are taken from; None: `identity` for good.
    Raises BindError.
    """
    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(identity),
        lambda: _renewed(renewal),  # type: ignore[arg-type,return-value] # the stubs leave out None, which gRPC documents
        require_client_authentication=True,
    )
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise BindError(f"cannot listen on {listen}: is the port in use, or the address not this machine's?") from error
    if not port:
        raise BindError(f"cannot listen on {listen}: is the port in use, or the address not this machine's?")
    return port


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.cert)], root_certificates=identity.ca)


def _renewed(renewal: Renewal | None) -> grpc.ServerCertificateConfiguration | None:
    """What gRPC asks for before each handshake; None: nothing has changed."""
    identity = renewal.look() if renewal is not None else None
    return _configuration(identity) if identity is not None else None


_INFRASTRUCTURE: Final[Mapping[str, Rule]] = {
    method: _EVERYONE for service in (health.SERVICE_NAME, reflection.SERVICE_NAME) for method in methods_of(service)
}
