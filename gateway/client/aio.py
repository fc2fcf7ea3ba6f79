"""The client for asyncio. What each method does stands with its twin in `gateway.client.sync`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack

from gateway.client import wire
from gateway.client.aio_background import AsyncBackground
from gateway.client.call import CallState
from gateway.client.connection import Connection, Line
from gateway.client.credentials import DEFAULT_ADDRESS, Credentials, address_from_env
from gateway.client.faults import Fault, Faults, Tries, seconds
from gateway.client.pending import MOST_PENDING, MOST_RENEWED
from gateway.client.results import Grant, Receipt, TokenUsage, Undelivered
from gateway.client.sync import CLOSE_TIMEOUT, TIMEOUT
from gateway.client.terms import CallTerms, UsageTerms
from gateway.errors import FailedPrecondition, GatewayError
from gateway.ids import uuid7
from gateway.rpc.channel import aio_channel
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceStub

if TYPE_CHECKING:
    from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceAsyncStub

    _A = TypeVar("_A")
    _Rpc = Callable[[AuthServiceAsyncStub], Callable[..., Awaitable[_A]]]

_log: Final = logging.getLogger("gateway.client")


class AsyncGateway:
    """Asks auth whether calls may be made, and reports what they used. One a loop: make it and use it there.

    address: `host:port`, or `dns:///host:port` for every address that the name has, in turn.
    identity: the folder that `gateway identity create` wrote, or `Credentials`. When the folder holds a renewed certificate,
    the client goes on with it by itself.
    timeout: seconds for which a caller waits, all tries together.
    max_pending: how many reports are kept in memory while auth is away.
    Raises Unauthenticated when the identity cannot be used. Make it after forking, and close it.

    Every method fails closed: without auth's word it raises. Denials are the subclasses of `gateway.errors.Refusal`;
    `AuthUnavailable` means that auth did not answer in time; any other GatewayError is a fault of the call itself, such as a
    field out of range or a right that the identity lacks.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        identity: Path | str | Credentials,
        timeout: float = TIMEOUT,
        max_pending: int = MOST_PENDING,
    ) -> None:
        credentials = identity if isinstance(identity, Credentials) else Credentials.load(identity)

        def dial(shown: Credentials) -> Line[AuthServiceAsyncStub, Awaitable[None]]:
            channel = aio_channel(address, shown, "auth")
            return Line(AuthServiceStub(channel), channel.close, Faults(address, shown))

        self._connect(Connection(dial, credentials), timeout, max_pending)

    def _connect(self, connection: Connection[AuthServiceAsyncStub, Awaitable[None]], timeout: float, max_pending: int) -> None:
        """Wires the client to whatever answers for auth."""
        self._connection = connection
        self._timeout = seconds(timeout)
        self._closed = False
        self._background = AsyncBackground(send=self._send_once, renew=self._renew_once, most=max_pending)

    @classmethod
    def from_env(
        cls, environment: Mapping[str, str] | None = None, *, timeout: float = TIMEOUT, max_pending: int = MOST_PENDING
    ) -> AsyncGateway:
        """A client by `GATEWAY_AUTH_ADDRESS` (default `127.0.0.1:50051`) and `GATEWAY_IDENTITY_DIR`.

        environment: read instead of the process's own. Raises Unauthenticated when there is no identity.
        """
        given = os.environ if environment is None else environment
        return AsyncGateway(
            address_from_env(given), identity=Credentials.from_env(given), timeout=timeout, max_pending=max_pending
        )

    # -- asking --------------------------------------------------------------------------------------------------------------

    async def validate(
        self,
        token: str,
        *,
        model: str,
        request_id: str | None = None,
        timeout: float | None = None,
        **terms: Unpack[CallTerms],
    ) -> Grant:
        """Asks whether a call may be made, and sets its money aside. Report it with `record_usage`, or use `call`.

        request_id: a UUID, best of version 7; None: made here. The same id with the same arguments gives the same grant while
        the call is open, so after AuthUnavailable ask again under the same one, or report it as released. A call whose id was
        made here is withdrawn in the background when nobody heard auth's answer.
        Raises a Refusal, AuthUnavailable within the timeout, or another GatewayError.
        """
        call_id = uuid7() if request_id is None else request_id
        message = wire.validation(token, call_id, model, terms)
        tries = self._tries(timeout)
        try:
            return wire.grant(await self._ask(lambda auth: auth.ValidateToken, message, tries, call_id), call_id)
        except (Fault, GatewayError) as fault:
            if tries.lost and request_id is None:
                self._background.post(wire.withdrawal(call_id))
            if isinstance(fault, Fault):
                raise fault.error from fault.__cause__
            raise
        except BaseException:  # such as a cancellation: nobody will use what may have been granted
            if request_id is None:
                self._background.post(wire.withdrawal(call_id))
            raise

    async def check(self, token: str, *, model: str = "", client_ip: str = "", timeout: float | None = None) -> int:
        """Looks whether a token is good, for a model where one is named; gives the token's id. Nothing is held or written.

        Not enough to let a call through that costs money: between the look and the call the budget may be gone.
        Raises like `validate`.
        """
        message = wire.look(token, model, client_ip)
        return wire.granted(await self._asked(lambda auth: auth.ValidateToken, message, timeout)).token_id

    async def usage(
        self, token: str, *, details: bool = False, client_ip: str = "", timeout: float | None = None
    ) -> TokenUsage:
        """What a token has used, also of one that is disabled, expired or spent. details: with its models and recent calls.

        Raises TokenUnknown, AuthUnavailable within the timeout, or another GatewayError.
        """
        message = pb.GetTokenUsageRequest(token=token, client_ip=client_ip, details=details)
        return wire.token_usage(await self._asked(lambda auth: auth.GetTokenUsage, message, timeout))

    def call(
        self,
        token: str,
        *,
        model: str,
        request_id: str | None = None,
        timeout: float | None = None,
        **terms: Unpack[CallTerms],
    ) -> AsyncCall:
        """One call as an `async with` block, with the arguments of `validate`. See `AsyncCall` for what its end charges."""
        return AsyncCall(self, token, model, request_id, timeout, terms)

    # -- reporting -----------------------------------------------------------------------------------------------------------

    async def record_usage(self, call: Grant | str, *, timeout: float | None = None, **terms: Unpack[UsageTerms]) -> Receipt:
        """Reports how a call ended. Harmless to repeat: the first report counts, the same again gets the same receipt.

        call: its grant, or its request id.
        When auth does not answer within the timeout the report is kept in memory and sent as soon as auth is back; the receipt
        then says `delivered=False`. Raises AlreadyExists when the call was reported with other figures, NotFound,
        PermissionDenied or InvalidArgument when auth refuses the report, Overloaded when auth is away and too many are kept.
        """
        return await self._record(wire.report(call, terms), timeout)

    async def renew(self, *calls: Grant | str, timeout: float | None = None) -> frozenset[str]:
        """Prolongs the leases of calls (at most 256) to their full length from now on; gives the ids that are still open.

        `call` does this by itself. Raises AuthUnavailable within the timeout, or another GatewayError.
        """
        message = pb.RenewLeaseRequest(request_ids=wire.ids(calls)[: MOST_RENEWED + 1])
        return frozenset((await self._asked(lambda auth: auth.RenewLease, message, timeout)).request_ids)

    # -- the end -------------------------------------------------------------------------------------------------------------

    async def flush(self, timeout: float = CLOSE_TIMEOUT) -> list[Undelivered]:
        """Waits until all reports are delivered; gives those that are not, and those that auth refused in the background."""
        return await self._background.flush(timeout)

    async def close(self, timeout: float = CLOSE_TIMEOUT) -> list[Undelivered]:
        """Flushes, then closes the connection; gives and logs what was not delivered. Those calls are charged the hold."""
        if self._closed:
            return []
        left = await self._background.flush(timeout)
        self._closed = True
        await self._background.stop()
        await asyncio.gather(*(line.close() for line in self._connection.lines()))
        for item in left:
            _log.error("report_not_delivered: %s (request_id=%s)", item.message, item.request_id)
        return left

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- tries ---------------------------------------------------------------------------------------------------------------

    def _tries(self, timeout: float | None) -> Tries:
        if self._closed:
            raise FailedPrecondition("this Gateway is closed")
        return Tries(self._timeout if timeout is None else timeout)

    async def _ask(
        self,
        rpc: _Rpc[_A],
        message: Any,
        tries: Tries,
        request_id: str = "",
    ) -> _A:
        """One question, asked again while its time lasts and the fault passes. Raises Fault."""
        while True:
            try:
                return await self._try(rpc, message, tries.left(), request_id)
            except Fault as fault:
                pause = tries.pause_after(fault)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _asked(self, rpc: _Rpc[_A], message: Any, timeout: float | None) -> _A:
        """The same; raises the GatewayError."""
        try:
            return await self._ask(rpc, message, self._tries(timeout))
        except Fault as fault:
            raise fault.error from fault.__cause__

    async def _try(
        self,
        rpc: _Rpc[_A],
        message: Any,
        timeout: float,
        request_id: str = "",
    ) -> _A:
        metadata = (("x-request-id", request_id),) if request_id else ()
        line = self._connection.take()
        try:
            return await rpc(line.stub)(message, timeout=timeout, metadata=metadata)
        except Exception as error:
            raise line.faults.read(error) from error
        finally:
            for old in self._connection.give_back(line):
                await old.close()

    async def _record(self, report: pb.RecordUsageRequest, timeout: float | None = None) -> Receipt:
        tries = self._tries(timeout)
        answer = await self._background.record(
            report, lambda wanted: self._ask(lambda auth: auth.RecordUsage, wanted, tries, wanted.request_id)
        )
        if answer is None:
            return Receipt(report.request_id, False, None, None, None)
        return wire.receipt(report.request_id, answer)

    async def _send_once(self, report: pb.RecordUsageRequest) -> pb.RecordUsageResponse:
        return await self._try(lambda auth: auth.RecordUsage, report, self._timeout, report.request_id)

    async def _renew_once(self, request_ids: list[str]) -> list[str]:
        message = pb.RenewLeaseRequest(request_ids=request_ids)
        return list((await self._try(lambda auth: auth.RenewLease, message, self._timeout)).request_ids)


class AsyncCall(CallState):
    """A call as an `async with` block.

    Open it right before the work, as leaving it decides what is charged:

    - `usage(…)` was called: what it last said, whether the block ended well or not;
    - `release()` was called: nothing;
    - neither: the whole hold, marked `estimated`, because nobody can know what was served. So a block that fails before the
      work has begun, or in a way that costs nothing, calls `release()`.

    While the block runs its lease is renewed in the background. If auth is away at the end, the report is kept and sent later.
    Entering raises like `Gateway.validate`; leaving raises like `Gateway.record_usage`, but never in place of the block's own
    exception.
    """

    def __init__(
        self, gateway: AsyncGateway, token: str, model: str, request_id: str | None, timeout: float | None, terms: CallTerms
    ) -> None:
        super().__init__()
        self._gateway = gateway
        self._validate: Callable[[], Awaitable[Grant]] = lambda: gateway.validate(
            token, model=model, request_id=request_id, timeout=timeout, **terms
        )

    async def __aenter__(self) -> Self:
        if self._grant is not None:
            raise FailedPrecondition("a call is made once: ask the gateway for another one")
        self._begin(await self._validate())
        self._gateway._background.keep(self.grant)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.reported:
            _log.warning("call_not_reported: it is charged its hold (request_id=%s)", self.request_id)
        self._gateway._background.drop(self.request_id)
        try:
            self.receipt = await self._gateway._record(self._report(error))
        except GatewayError as fault:
            if error is None:
                raise
            _log.error("report_failed: %s (request_id=%s)", fault.message, self.request_id)
