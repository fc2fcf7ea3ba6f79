"""Errors over a real connection: what a servicer raises is what the caller gets."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.errors import GatewayError, Internal
from gateway.rpc.channel import aio_channel
from gateway.rpc.identity import Identity
from gateway.rpc.status import CODES, code_of, from_reason, from_status, to_status
from gateway.stubs.admin.v1 import requests_pb2, requests_pb2_grpc
from gateway.stubs.auth.v1 import auth_pb2, auth_pb2_grpc
from tests.conftest import LogLines
from tests.gateway.conftest import Loopback

REQUEST_ID = "01936b2e-5f2a-7000-8000-0123456789ab"


def subclasses(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from subclasses(child)


KINDS = list(subclasses())


def raised(loopback: Loopback, identities: dict[str, Identity], error: BaseException) -> GatewayError:
    """What the caller gets when a servicer raises this."""

    def fail(request: object, context: grpc.ServicerContext) -> None:
        raise error

    loopback.auth.beat = fail
    stub = auth_pb2_grpc.AuthServiceStub(loopback.channel(identities["proxy"]))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Beat(auth_pb2.BeatRequest(), metadata=(("x-request-id", REQUEST_ID),), timeout=5)
    return from_status(caught.value)


def test_each_subclass_has_a_code_of_its_own_row() -> None:
    assert set(KINDS) | {GatewayError} == set(CODES)


def test_no_two_subclasses_share_a_reason() -> None:
    assert len({kind.reason for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Internal])
def test_each_subclass_comes_back_equal(loopback: Loopback, identities: dict[str, Identity], kind: type[GatewayError]) -> None:
    for error in (
        kind("try something else"),
        kind("later", retry_after=0.1),
        kind("for programs", retry_after=30.0, metadata={"limit": "max_amount", "resets_at": ""}),
    ):
        assert raised(loopback, identities, error) == error


def test_internal_comes_back_as_an_internal_error_with_the_requests_id(
    loopback: Loopback, identities: dict[str, Identity]
) -> None:
    told = Internal("internal error", metadata={"request_id": REQUEST_ID})
    for error in (ValueError("postgresql://secret"), Internal("SELECT secret"), GatewayError("secret"), told):
        assert raised(loopback, identities, error) == told


def test_what_nobody_foresaw_is_logged_whole(loopback: Loopback, identities: dict[str, Identity], log_lines: LogLines) -> None:
    raised(loopback, identities, ValueError("the reason"))
    (line,) = log_lines()
    assert line["level"] == "error"
    assert line["request_id"] == REQUEST_ID
    assert "ValueError: the reason" in line["exception"]


@pytest.mark.parametrize(
    "message",
    [
        "Müller schuldet 5 €",
        "two\nlines\r\nand\ttabs",
        "emoji 🦆 ends",
        "50% of %41 and %zz",
        "",
        " ",
        "\x00\x01\x7f",
        "日本語" * 100,
    ],
)
def test_messages_of_every_kind_arrive_as_they_were(loopback: Loopback, identities: dict[str, Identity], message: str) -> None:
    error = errors.NotFound(message, metadata={"Schlüssel": message, "UPPER case": "\n"})
    assert raised(loopback, identities, error) == error


def test_a_message_that_has_no_utf8_arrives_all_the_same(loopback: Loopback, identities: dict[str, Identity]) -> None:
    assert raised(loopback, identities, errors.NotFound("a \ud800 b")).message == "a ? b"


def test_a_message_longer_than_the_headers_is_cut(loopback: Loopback, identities: dict[str, Identity]) -> None:
    error = raised(loopback, identities, errors.NotFound("ü" * 100_000, metadata={"a": "1", "b": "x" * 100_000}))
    assert isinstance(error, errors.NotFound)
    assert set(error.message) == {"ü"}
    assert 500 < len(error.message) < 1000
    assert error.metadata == {"a": "1"}


def test_streams_fail_with_the_same_errors(loopback: Loopback, identities: dict[str, Identity]) -> None:
    def tail(context: grpc.ServicerContext) -> Iterator[requests_pb2.TailRequestsResponse]:
        yield requests_pb2.TailRequestsResponse(cursor="1")
        raise errors.DatabaseUnavailable("away", retry_after=2.0)

    loopback.requests.tail = tail
    stream = requests_pb2_grpc.RequestLogServiceStub(loopback.channel(identities["operator"])).TailRequests(
        requests_pb2.TailRequestsRequest(), timeout=5
    )
    assert next(stream).cursor == "operator"
    assert next(stream).cursor == "1"
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert from_status(caught.value) == errors.DatabaseUnavailable("away", retry_after=2.0)


async def test_asyncio_callers_get_the_same_errors(loopback: Loopback, identities: dict[str, Identity]) -> None:
    error = errors.Throttled("wait", retry_after=7.5, metadata={"limit": "tries"})

    def fail(request: object, context: grpc.ServicerContext) -> None:
        raise error

    loopback.auth.beat = fail
    async with aio_channel(loopback.address, identities["proxy"], "auth") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await auth_pb2_grpc.AuthServiceStub(channel).Beat(auth_pb2.BeatRequest(), timeout=5)
    assert from_status(caught.value) == error


def test_a_status_that_a_servicer_set_itself_is_left_alone(loopback: Loopback, identities: dict[str, Identity]) -> None:
    loopback.auth.beat = lambda request, context: context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")
    stub = auth_pb2_grpc.AuthServiceStub(loopback.channel(identities["proxy"]))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Beat(auth_pb2.BeatRequest(), timeout=5)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "by hand")


def test_a_service_that_is_not_there_is_unavailable_under_the_name_that_the_caller_gives_it(
    identities: dict[str, Identity], loopback: Loopback
) -> None:
    stub = auth_pb2_grpc.AuthServiceStub(loopback.channel(identities["proxy"]))
    loopback.server.stop(0).wait(5)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Beat(auth_pb2.BeatRequest(), timeout=5)
    assert from_status(caught.value) == errors.AuthUnavailable("the service did not answer; try again", retry_after=1.0)
    assert isinstance(from_status(caught.value, unavailable=errors.AdminUnavailable), errors.AdminUnavailable)


def test_a_deadline_that_passed_is_unavailable(identities: dict[str, Identity], loopback: Loopback) -> None:
    def until_over(request: object, context: grpc.ServicerContext) -> None:
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(10)

    loopback.auth.beat = until_over
    stub = auth_pb2_grpc.AuthServiceStub(loopback.channel(identities["proxy"]))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Beat(auth_pb2.BeatRequest(), timeout=0.2)
    assert isinstance(from_status(caught.value), errors.AuthUnavailable)


def test_a_reason_of_a_newer_service_is_read_by_its_code() -> None:
    assert from_reason("TOO_NEW", "m", code=5) == errors.NotFound("m")
    assert from_reason("TOO_NEW", "m") == Internal("m")
    assert from_reason("ALREADY_EXISTS", "m", code=13, retry_after=1.5) == errors.AlreadyExists("m", retry_after=1.5)


def test_a_subclass_without_a_row_has_its_parents_code() -> None:
    class Special(errors.NotFound):
        """One of somebody's own."""

        reason = "SPECIAL"

    assert code_of(Special("m")) is grpc.StatusCode.NOT_FOUND


@given(
    message=st.text(max_size=3_000),
    metadata=st.dictionaries(st.text(max_size=50), st.text(max_size=400), max_size=8),
    retry_after=st.none() | st.floats(0, 1e6),
)
def test_no_error_makes_a_status_larger_than_what_headers_hold(
    message: str, metadata: dict[str, str], retry_after: float | None
) -> None:
    _, details, trailers = to_status(errors.NotFound(message, metadata=metadata, retry_after=retry_after))
    size = 3 * len(details.encode()) + sum(len(key) + len(value) * 4 // 3 + 32 for key, value in trailers)
    assert size < 8 * 1024
