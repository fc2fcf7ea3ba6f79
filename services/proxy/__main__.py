"""`python -m services.proxy`: the edge as a process."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from gateway.errors import GatewayError
from gateway.ids import uuid7
from gateway.process import logs
from gateway.process.lifecycle import install_signals, stop_when_told
from gateway.process.memory import give_memory_back
from gateway.process.metrics import service_registry
from gateway.process.probes import start_probes
from gateway.process.settings import Settings, SettingsError, load_settings
from gateway.process.stderr import cannot_start, catch_stray
from gateway.process.tls import CertificateFault
from gateway.rpc.channel import aio_channel
from gateway.rpc.identity import Identity, IdentityError
from gateway.rpc.renewal import Renewal
from services.proxy.admin_http import AdminRoutes
from services.proxy.app import make_app
from services.proxy.auth_client import AuthClient
from services.proxy.metrics import BatchMetrics, EdgeMetrics
from services.proxy.outbox import Outbox
from services.proxy.ports import Ports
from services.proxy.providers.keys import KeyMissing
from services.proxy.providers.registry import allowed_hosts, build_registry
from services.proxy.reading import Reader
from services.proxy.relay import Relay
from services.proxy.renewed_channels import RenewedChannels
from services.proxy.replicas import Replicas
from services.proxy.told_routing import routing_of
from services.proxy.upstream_http import HttpUpstream

QUIET = 2.0
"""Seconds without a request after which kept connections are ended; not where no lame-duck pause is wanted either."""
LAST_SECONDS = 5.0
"""Seconds for what is left when all calls have ended, or were cut: the last settlements, and draining answers."""

_log = logs.get_logger(__name__)


def main() -> None:
    """Serves until a signal; exits with one line on standard error where it cannot start."""
    give_memory_back()
    try:
        settings = load_settings(os.environ)
        logs.configure(settings.log_level, settings.log_format, "proxy")
        catch_stray()
        identity = Identity.load(settings.identity_dir_for("proxy"))
        # What is there now stays: the collector need not look at it again, nor after every few requests. A sixth of the CPU.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        _runner()(serve(settings, identity, os.environ))
    except (SettingsError, CertificateFault, IdentityError, KeyMissing, GatewayError, OSError) as error:
        sys.exit(cannot_start("proxy", error))


async def serve(settings: Settings, identity: Identity, environ: Mapping[str, str]) -> None:
    """Serves until a signal. Waits for nobody: an auth or admin that is away is told of call by call."""
    loop = asyncio.get_running_loop()
    signals = install_signals(loop)
    renewal = Renewal(settings.identity_dir_for("proxy"), identity)
    proxy_id, metrics = uuid7(), service_registry("proxy", certificate_ends=lambda: renewal.expires_at)
    registry = build_registry(settings.providers, settings.models, environ=environ, clock=loop.time)
    outbox = Outbox.open(settings.outbox_dir, proxy_id=proxy_id, registry=metrics)
    replicas = Replicas(settings.auth_address, lambda address: aio_channel(address, identity, "auth"))
    admin = AdminRoutes(channel=aio_channel(settings.admin_address, identity, "admin"))
    channels = RenewedChannels(renewal, replicas=replicas, admin=admin, admin_address=settings.admin_address)
    auth = AuthClient(
        replicas=replicas,
        outbox=outbox,
        proxy_id=proxy_id,
        host=socket.gethostname(),
        routing=routing_of(settings),
        metrics=BatchMetrics(metrics),
    )
    upstream = HttpUpstream(
        connect=settings.upstream_connect_timeout,
        first_byte=settings.upstream_first_byte_timeout,
        idle=settings.upstream_idle_timeout,
        total=settings.upstream_total_timeout,
        allowed=allowed_hosts(settings.providers),
    )
    relay = Relay(on_hangup=settings.on_hangup)
    reader = Reader()
    app = make_app(
        settings,
        auth=auth,
        outbox=outbox,
        registry=registry,
        upstream=upstream,
        admin=admin,
        relay=relay,
        reader=reader,
        metrics=EdgeMetrics(metrics, [provider.name for provider in settings.providers]),
    )
    ports = Ports(app, settings)
    await upstream.start()
    await auth.start()
    await ports.open()
    channels.start()
    _log.info("serving", **ports.described(), proxy_id=proxy_id)
    with start_probes(settings.proxy_metrics_address, lambda: app.ready, registry=metrics):
        await stop_when_told(
            signals,
            lame_duck=settings.lame_duck,
            drain=settings.drain,
            not_ready=app.close,
            close=ports.close,
            idle=lambda: app.idle(quiet=min(settings.lame_duck, QUIET)),
        )
        await ports.end()
        await relay.close(0.0 if signals.cut.is_set() else LAST_SECONDS)
        await auth.close()  # what it withdraws at the end is for the outbox to send
        await outbox.close(LAST_SECONDS)
        await upstream.close()
        await reader.close()
        await replicas.close()
        await channels.close()
    signals.close()


def _runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    """What runs the loop: uvloop where the platform has it."""
    try:
        import uvloop  # noqa: PLC0415 - absent on some platforms
    except ImportError:
        return asyncio.run
    return uvloop.run


if __name__ == "__main__":
    main()
