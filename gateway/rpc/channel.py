"""Channels to our own services: mutual TLS, quick to come back after an outage."""

from __future__ import annotations

import json
from typing import Final

import grpc
import grpc.aio

from gateway.rpc.keys import Keys, dns_name

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
KEEPALIVE_MS: Final = 10_000
KEEPALIVE_TIMEOUT_MS: Final = 5_000

Option = tuple[str, int | str]

OPTIONS: Final[tuple[Option, ...]] = (
    # By default the pause between tries grows to two minutes: after an outage of 100 s the first success took 11 s, with
    # these 0.1 s.
    # Also what one attempt may take, handshake included: on a busy machine 200 ms were too few.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Less than a caller of the gateway waits: a server that is back is found before the next one goes away.
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # round_robin keeps a connection to every address that the name has, and opens it anew without waiting for a call.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # Nothing but this decides how calls are made. No policy of retries: gRPC repeats only what no server has seen.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


def sync_channel(address: str, identity: Keys, service: str) -> grpc.Channel:
    """A channel for threads.

    address: `host:port` or `dns:///host:port`, where a name means all addresses that it has; or several addresses of machines
    with commas between them.
    service: the name in the server's certificate, such as `auth`; another server of the installation is refused.
    """
    return grpc.secure_channel(target(address), _credentials(identity), options=_options(service))


def aio_channel(address: str, identity: Keys, service: str) -> grpc.aio.Channel:
    """The same channel for asyncio; to be made on the running loop."""
    return grpc.aio.secure_channel(target(address), _credentials(identity), options=_options(service))


def target(address: str) -> str:
    """An address of the settings as gRPC takes it: `10.0.0.7:50051,10.0.0.8:50051` is `ipv4:10.0.0.7:50051,10.0.0.8:50051`."""
    if "," not in address or address.startswith(("ipv4:", "ipv6:")):
        return address
    return f"ipv6:{address}" if address.startswith("[") else f"ipv4:{address}"


def _credentials(identity: Keys) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(identity.ca, identity.key, identity.cert)


def _options(service: str) -> tuple[Option, ...]:
    return (*OPTIONS, ("grpc.ssl_target_name_override", dns_name(service)))
