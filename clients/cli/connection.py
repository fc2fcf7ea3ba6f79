"""The way to admin and auth: a channel under the operator's certificate, and its errors as this suite's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import grpc

from clients.cli.output import UNAVAILABLE, Failure
from gateway.process.settings import Settings, load_settings
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity, IdentityError
from gateway.rpc.status import from_status

STARTING = 5.0  # seconds that a command waits for an admin that is starting
DEADLINE = 15.0  # seconds that one call may take


def admin_channel(patience: float = STARTING) -> AbstractContextManager[grpc.Channel]:
    """A channel to admin that is connected. What a call on it raises comes out as a GatewayError.

    patience: seconds that admin has to answer. Raises Failure when it does not, or there is no operator's certificate.
    """
    settings = load_settings(os.environ)
    return _channel(settings, "admin", settings.admin_address, patience)


def auth_channel() -> AbstractContextManager[grpc.Channel]:
    """The same to auth."""
    settings = load_settings(os.environ)
    return _channel(settings, "auth", settings.auth_address, STARTING)


@contextmanager
def _channel(settings: Settings, service: str, address: str, patience: float) -> Iterator[grpc.Channel]:
    with sync_channel(address, operator(settings), service) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=patience)
        except grpc.FutureTimeoutError:
            raise Failure(
                f"{service} does not answer at {address}: start it with `gateway up` or `gateway {service}`",
                code=UNAVAILABLE,
                reason=f"{service}_unavailable",
            ) from None
        try:
            yield channel
        except grpc.RpcError as fault:
            raise from_status(fault) from None


def operator(settings: Settings) -> Identity:
    """The operator's certificate. Raises Failure, saying what to do, where there is none."""
    try:
        return Identity.load(settings.identity_dir_for("operator"))
    except IdentityError as fault:
        raise Failure(str(fault), reason="no_identity") from None
