"""auth itself, asked over gRPC with the proxy's certificate: for rows that are about the ledger and not about HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import grpc

from gateway.ids import uuid7
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceStub
from tests.prove.site import Site

Answer = TypeVar("Answer")
SECONDS = 20.0  # that an answer may take, on a machine that is busy with other things too


@contextmanager
def stubs(site: Site) -> Iterator[list[AuthServiceStub]]:
    """One for each auth, by itself: no balancing between them."""
    identity = Identity.load(site.stack.data / "pki" / "proxy")
    with ExitStack() as channels:
        yield [
            AuthServiceStub(channels.enter_context(sync_channel(f"127.0.0.1:{site.stack.ports[name]}", identity, "auth")))
            for name in site.all_of("auth")
        ]


def patiently(rpc: Callable[..., Answer], message: object) -> Answer:
    """The answer of an RPC, which is asked again while the database is busy: nothing was changed, as `UNAVAILABLE` promises."""
    deadline = time.monotonic() + 3 * SECONDS
    while True:
        try:
            return rpc(message, timeout=SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def validation(token: str, model: str, *, request_id: str = "", **fields: object) -> pb.ValidateTokenRequest:
    """A call that wants to be made; `max_output_tokens` and the like as further fields."""
    message = pb.ValidateTokenRequest(
        token=token,
        request_id=request_id or uuid7(),
        endpoint="/v1/chat/completions",
        dialect="openai",
        request_model=model,
        candidates=[pb.Candidate(provider="mock", model=model)],
    )
    message.MergeFrom(pb.ValidateTokenRequest(**fields))  # type: ignore[arg-type] # the test's own fields
    return message


def report(request_id: str, model: str, usage: Mapping[str, int], **fields: object) -> pb.RecordUsageRequest:
    """How it ended: by the provider's own numbers, unless further fields say otherwise."""
    message = pb.RecordUsageRequest(
        request_id=request_id,
        outcome=pb.OUTCOME_SETTLED,
        served=pb.Candidate(provider="mock", model=model),
        usage=[pb.UsageItem(unit=unit, count=count) for unit, count in usage.items()],
        source=pb.USAGE_SOURCE_PROVIDER,
        status=200,
    )
    message.MergeFrom(pb.RecordUsageRequest(**fields))  # type: ignore[arg-type] # the test's own fields
    return message
