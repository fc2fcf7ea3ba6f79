"""The way to the admin service: its channel under the operator's certificate, and its errors as this suite's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from clients.cli.output import UNAVAILABLE, Failure
from gateway.process.settings import Settings, load_settings
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity, IdentityError
from gateway.rpc.status import from_status

STARTING = 5.0  # seconds that a command waits for an admin that is starting
DEADLINE = 15.0  # seconds that one call may take


@contextmanager
def admin_channel() -> Iterator[grpc.Channel]:
    """A channel to admin that is connected. What a call on it raises comes out as a GatewayError.

    Raises Failure when admin does not answer within 5 s or there is no operator's certificate.
    """
    settings = load_settings(os.environ)
    with sync_channel(settings.admin_address, operator(settings), "admin") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=STARTING)
        except grpc.FutureTimeoutError:
            raise Failure(
                f"admin does not answer at {settings.admin_address}: start it with `gateway up` or `gateway admin`",
                code=UNAVAILABLE,
                reason="admin_unavailable",
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
