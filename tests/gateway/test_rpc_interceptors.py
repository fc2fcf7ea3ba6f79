"""What is logged of a call, and under which id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from gateway.errors import NotFound
from gateway.process import logs
from gateway.rpc.identity import Identity
from gateway.stubs.admin.v1 import requests_pb2, requests_pb2_grpc
from gateway.stubs.auth.v1 import auth_pb2, auth_pb2_grpc
from tests.conftest import LogLines
from tests.gateway.conftest import Loopback

BEAT = "/gateway.auth.v1.AuthService/Beat"
FIRST, SECOND = "01936b2e-5f2a-7000-8000-0123456789ab", "01936b2e-5f2a-7000-8000-ba9876543210"


@pytest.fixture
def stub(loopback: Loopback, identities: dict[str, Identity]) -> auth_pb2_grpc.AuthServiceStub:
    return auth_pb2_grpc.AuthServiceStub(loopback.channel(identities["proxy"]))


def beat(stub: auth_pb2_grpc.AuthServiceStub, *metadata: tuple[str, str]) -> None:
    stub.Beat(auth_pb2.BeatRequest(), metadata=metadata, timeout=5)


def test_a_call_that_went_well_is_one_debug_line(
    stub: auth_pb2_grpc.AuthServiceStub, log_lines: LogLines, loopback: Loopback
) -> None:
    beat(stub)
    loopback.server.stop(5).wait(5)
    (line,) = log_lines()
    assert (line["level"], line["method"], line["code"]) == ("debug", BEAT, "OK")
    assert line["duration_ms"] >= 0


def test_a_fault_is_one_warning_with_its_reason_and_who_met_it(
    loopback: Loopback, stub: auth_pb2_grpc.AuthServiceStub, log_lines: LogLines
) -> None:
    def fail(request: Any, context: Any) -> None:
        raise NotFound("no such token")

    loopback.auth.beat = fail
    with pytest.raises(grpc.RpcError):
        beat(stub, ("x-request-id", FIRST))
    (line,) = log_lines()
    assert {key: line[key] for key in ("level", "code", "reason", "caller", "message", "request_id")} == {
        "level": "warning",
        "code": "NOT_FOUND",
        "reason": "NOT_FOUND",
        "caller": "proxy",
        "message": "no such token",
        "request_id": FIRST,
    }


def test_lines_of_a_call_carry_its_own_request_id(
    loopback: Loopback, stub: auth_pb2_grpc.AuthServiceStub, log_lines: LogLines
) -> None:
    loopback.auth.beat = lambda request, context: logs.get_logger("servicer").info("inside")
    for metadata in ((("x-request-id", FIRST),), (("x-request-id", SECOND),), ()):
        beat(stub, *metadata)
    assert [line.get("request_id") for line in log_lines() if line["event"] == "inside"] == [FIRST, SECOND, None]


@pytest.mark.parametrize("value", ["", "1", FIRST.upper(), FIRST + "\x20", "x" * 5_000, '"}\\n{"level":"error'])
def test_an_id_that_is_no_uuid_stands_in_no_line(
    loopback: Loopback, stub: auth_pb2_grpc.AuthServiceStub, log_lines: LogLines, value: str
) -> None:
    loopback.auth.beat = lambda request, context: logs.get_logger("servicer").info("inside")
    beat(stub, ("x-request-id", value.strip()))
    assert all("request_id" not in line for line in log_lines()) or value.strip() == FIRST


def test_streams_log_under_their_request_id_too(
    loopback: Loopback, identities: dict[str, Identity], log_lines: LogLines
) -> None:
    def tail(context: grpc.ServicerContext) -> Iterator[requests_pb2.TailRequestsResponse]:
        yield requests_pb2.TailRequestsResponse()
        logs.get_logger("servicer").info("inside")

    loopback.requests.tail = tail
    stub = requests_pb2_grpc.RequestLogServiceStub(loopback.channel(identities["operator"]))
    list(stub.TailRequests(requests_pb2.TailRequestsRequest(), metadata=(("x-request-id", FIRST),), timeout=5))
    assert [line["request_id"] for line in log_lines() if line["event"] == "inside"] == [FIRST]


def test_a_caller_who_leaves_a_stream_is_no_fault(
    loopback: Loopback, identities: dict[str, Identity], log_lines: LogLines
) -> None:
    def tail(context: grpc.ServicerContext) -> Iterator[requests_pb2.TailRequestsResponse]:
        while True:
            yield requests_pb2.TailRequestsResponse()

    loopback.requests.tail = tail
    stub = requests_pb2_grpc.RequestLogServiceStub(loopback.channel(identities["operator"]))
    stream = stub.TailRequests(requests_pb2.TailRequestsRequest(), timeout=5)
    next(stream)
    stream.cancel()
    assert loopback.server.stop(5).wait(5)
    assert [line for line in log_lines() if line["level"] != "debug"] == []
