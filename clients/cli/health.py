"""`gateway health`: asks services whether they are ready, as a container's health check does."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import grpc
from cyclopts import Parameter
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clients.cli.output import FAULT, OK, USAGE, Failure, Json, table, tell_json
from clients.cli.places import edge, reachable
from clients.cli.probe import TIMEOUT, Answer
from clients.cli.probe import ask as ask_http
from gateway.process.settings import Settings, load_settings
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity, IdentityError

Service = Literal["auth", "admin", "proxy", "demo"]
ALL: tuple[Service, ...] = ("auth", "admin", "proxy", "demo")


def health(
    service: Annotated[Service | None, Parameter(help="One service of this machine.")] = None,
    *,
    all_: Annotated[bool, Parameter(name="--all", help="All four.")] = False,
    timeout: Annotated[float, Parameter(help="Seconds that a service has to answer.")] = TIMEOUT,
    json: Json = False,
) -> int:
    """Ask services whether they are ready. Exit code 0: all of them; 1: not all."""
    if service is not None and all_:
        raise Failure("give a service or --all, not both", code=USAGE, reason="usage")
    settings = load_settings(os.environ)
    answers = [ask(settings, name, timeout) for name in ([service] if service is not None else ALL)]
    ready = all(answer.ready for answer in answers)
    if json:
        services = {answer.service: {"ready": answer.ready, "detail": answer.detail} for answer in answers}
        tell_json({"ready": ready, "services": services})
    else:
        rows = ((answer.service, "ready" if answer.ready else "not ready", answer.detail) for answer in answers)
        table(("service", "", "detail"), rows)
    return OK if ready else FAULT


def ask(settings: Settings, service: str, timeout: float) -> Answer:
    """What one service of this machine says."""
    listen = _http(settings, service)
    if listen is not None:
        return ask_http(service, listen, timeout, tls=settings.tls_cert is not None and listen == edge(settings))
    return _ask_grpc(settings, service, settings.auth_listen if service == "auth" else settings.admin_listen, timeout)


def _http(settings: Settings, service: str) -> str | None:
    """Where a service answers probes over HTTP; None: only over gRPC."""
    match service:
        case "auth":
            return settings.auth_metrics_address
        case "admin":
            return settings.admin_metrics_address
        case "demo":
            return settings.demo_listen
        case _:
            return settings.proxy_metrics_address or edge(settings)


def _ask_grpc(settings: Settings, service: str, listen: str, timeout: float) -> Answer:
    host, port = reachable(listen)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        identity = _identity(settings, service)
    except IdentityError as fault:
        return Answer(service, ready=False, detail=str(fault), answered=False)
    with sync_channel(address, identity, service) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as fault:
            return Answer(service, ready=False, detail=f"no answer at {address}: {fault.code().name}", answered=False)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    ready = answer.status == health_pb2.HealthCheckResponse.SERVING
    return Answer(service, ready=ready, detail=f"{status} at {address}")


def _identity(settings: Settings, service: str) -> Identity:
    """The service's own identity, which its container has, else the operator's. Raises IdentityError."""
    try:
        return Identity.load(settings.identity_dir_for(service))
    except IdentityError:
        return Identity.load(settings.identity_dir_for("operator"))
