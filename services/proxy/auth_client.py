"""The proxy's side of auth: gathers the calls that wait at one moment into batches, and fails closed.

A validation leaves with whatever else waits, and takes the pending settlements of its tokens along, so that a caller who makes
one call after another never meets his own hold. Nobody waits longer than a second; an admission that nobody waits for any more
is withdrawn through the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from gateway.errors import (
    AuthUnavailable,
    DatabaseUnavailable,
    GatewayError,
    Internal,
    Overloaded,
    PermissionDenied,
    RequestTooLarge,
    Unauthenticated,
)
from gateway.process.logs import get_logger
from gateway.process.tasks import survives
from gateway.rpc.refusals import grant_of, refusal_of
from gateway.rpc.status import from_reason, from_status
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.metrics import BatchMetrics
from services.proxy.outbox import SETTLEMENTS_PER_BATCH, Outbox, token_key
from services.proxy.replicas import PROBE_INTERVAL, Replica, Replicas, Rpc

PATIENCE: Final = 1.0  # seconds from a call's arrival until it is told that auth is away
RPC_TIMEOUT: Final = 0.8
MOST_WAITING: Final = 2_000
VALIDATIONS_PER_BATCH: Final = 64
BYTES_PER_BATCH: Final = 1_000_000  # of the 1 MiB that a batch may have
BATCHES_IN_FLIGHT: Final = 2
SECOND_BATCH: Final = 32  # calls
BEAT_INTERVAL: Final = 5.0
_RETRY: Final = 0.05
_LATE: Final = 0.1
_TOO_LATE: Final = 0.01
_SETTLE_TIMEOUT: Final = 5.0
_SETTLE_TIMEOUT_BESIDE: Final = 2.0  # the same where another server can take them
_UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE.value[0]
# What auth says before it does anything. To the caller these are a fault of ours: he is neither unknown nor forbidden.
_OUR_FAULT: Final = (PermissionDenied, Unauthenticated, RequestTooLarge)
_NOTHING_DONE: Final = (DatabaseUnavailable, PermissionDenied, Unauthenticated)

_log = get_logger(__name__)

_A = TypeVar("_A")


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call that waits for its decision."""

    request: pb.ValidateTokenRequest
    token_key: bytes
    deadline: float
    answer: asyncio.Future[pb.Grant]
    timer: asyncio.TimerHandle | None = field(default=None)
    in_flight: bool = False
    """Whether it is on its way to auth."""
    lost: bool = False
    """Whether an earlier try did not come back, so that auth may have admitted it or may do so yet."""


class AuthClient:
    """Asks auth, whichever server of it answers, on behalf of every call of this process.

    replicas: the servers. outbox: gives the settlements that travel along, and takes the withdrawals.
    proxy_id: this life of this process. host: where it runs, for people. routing: where it sends calls.
    metrics: of the batches.
    """

    def __init__(
        self, *, replicas: Replicas, outbox: Outbox, proxy_id: str, host: str, routing: pb.Routing, metrics: BatchMetrics
    ) -> None:
        self._metrics = metrics
        self._replicas = replicas
        self._outbox = outbox
        self._beat = pb.BeatRequest(proxy_id=proxy_id, host=host[:200], routing=routing)
        self._proxy_id = proxy_id
        self._queue: deque[_Waiting] = deque()
        self._waiting = 0
        self._in_flight = 0
        self._sent_at = 0.0
        self._pump_due = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to connect and to beat, and lets the outbox settle."""
        await self._replicas.start()
        self._outbox.start(self._settle, self._release_unsent)
        self._run(self._keep_beating())

    async def close(self) -> None:
        """Stops; whoever still waits is told that auth is away. The connections are closed by whoever closes the replicas."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._queue:
            self._give_up(self._queue.popleft())

    @property
    def ready(self) -> bool:
        """Whether auth answers: of one server the connection stands, and the last RPC came back."""
        return self._replicas.ready

    @property
    def waiting(self) -> int:
        """How many calls wait for their decision."""
        return self._waiting

    async def validate(self, request: pb.ValidateTokenRequest, *, arrived: float) -> pb.Grant:
        """Decides one call; without a request id it only looks.

        arrived: the loop's time at which the call came. Raises the Refusal of a denial, AuthUnavailable a second after the
        arrival, Overloaded when 2,000 are waiting.
        """
        if self._waiting >= MOST_WAITING:
            raise Overloaded("Too many calls are waiting to be checked. Try again in a moment.", retry_after=1.0)
        loop = asyncio.get_running_loop()
        if request.request_id:
            request.proxy_id = self._proxy_id
        waiting = _Waiting(request, token_key(request.token), arrived + PATIENCE, loop.create_future())
        waiting.timer = loop.call_at(waiting.deadline, self._give_up, waiting)
        self._waiting += 1
        self._queue.append(waiting)
        self._pump_soon()
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            # The decision may already be there, and the caller gone before he could take it.
            decided = waiting.answer
            if not decided.done() or decided.cancelled():
                self._withdraw(waiting)
            elif decided.exception() is None:
                self._withdraw(waiting, granted=True)
            raise
        finally:
            self._waiting -= 1
            waiting.timer.cancel()

    async def token_usage(self, token: str, client_ip: str, details: bool) -> pb.GetTokenUsageResponse:
        """A token's books, with the calls that have ended up to now. Raises TokenUnknown, AuthUnavailable."""
        until = asyncio.get_running_loop().time() + PATIENCE
        await self._settle_pending(token_key(token), until)
        request = pb.GetTokenUsageRequest(token=token, client_ip=client_ip, details=details)
        return await self._ask(lambda stub: stub.GetTokenUsage, request, until)

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """The models that a token may use. Raises the Refusal of a denial, AuthUnavailable."""
        until = asyncio.get_running_loop().time() + PATIENCE
        response = await self._ask(lambda stub: stub.ListModels, request, until)
        if response.HasField("denial"):
            raise refusal_of(response.denial)
        return response

    # -- batches -------------------------------------------------------------------------------------------------------------

    def _pump_soon(self) -> None:
        """Has what waits sent after this turn of the loop, so that all calls of one turn travel together."""
        if not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        loop = asyncio.get_running_loop()
        while self._queue and self._may_send(loop.time()):
            replica = self._replicas.choose()
            if replica is None:
                self._reconnect()  # what is not sent needs no withdrawal
                return
            if batch := self._gather():
                self._in_flight += 1
                self._sent_at = loop.time()
                loop.call_later(_LATE, self._pump_soon)
                self._run(self._send(batch, replica))

    def _gather(self) -> list[_Waiting]:
        """Takes from the queue what fits into one batch together with all that its tokens have pending."""
        batch: list[_Waiting] = []
        keys: set[bytes] = set()
        settlements = size = 0
        now = asyncio.get_running_loop().time()
        while self._queue and len(batch) < VALIDATIONS_PER_BATCH:
            waiting = self._queue[0]
            # Who left meanwhile is not asked for, nor who leaves before an answer can come: he would have to be withdrawn.
            if not waiting.answer.done() and waiting.deadline - now > _TOO_LATE:
                count, weight = (0, 0) if waiting.token_key in keys else self._outbox.weight(waiting.token_key)
                weight += waiting.request.ByteSize() + 8
                if batch and (settlements + count > SETTLEMENTS_PER_BATCH or size + weight > BYTES_PER_BATCH):
                    break
                settlements, size = settlements + count, size + weight
                keys.add(waiting.token_key)
                batch.append(waiting)
            self._queue.popleft()
        return batch

    def _may_send(self, now: float) -> bool:
        """Whether a batch may leave now.

        A second one only when it is worth a transaction of its own, or the first one is late: that takes a third off auth's CPU
        a call at 64 connections, where a batch is back in a few milliseconds.
        """
        if self._in_flight == 0:
            return True
        worth_it = len(self._queue) >= SECOND_BATCH or now - self._sent_at >= _LATE
        return self._in_flight < BATCHES_IN_FLIGHT and worth_it

    async def _send(self, batch: list[_Waiting], replica: Replica) -> None:
        again: list[_Waiting] = []
        try:
            again = await self._decide(batch, replica)
        except asyncio.CancelledError:
            self._fail(batch)
            raise
        except GatewayError as error:
            _log.error("auth cannot take a batch of validations", reason=error.reason, error=error.message)
            self._fail(batch)
        except Exception:
            _log.exception("a batch of validations failed")
            self._fail(batch)
        finally:
            self._in_flight -= 1
        if again:
            self._queue.extendleft(reversed(again))
            # A server that went away leaves its share to the others at once.
            elsewhere = not replica.answering and self._replicas.ready
            asyncio.get_running_loop().call_later(0.0 if elsewhere else _RETRY, self._pump_soon)
        else:
            self._pump_soon()

    async def _decide(self, batch: list[_Waiting], replica: Replica) -> list[_Waiting]:
        """Sends a batch; gives those that are to be asked again. Raises GatewayError for a fault of the whole batch."""
        # The oldest may leave before the answer: a batch that ended with his second would be lost to all the others, again and
        # again, as long as auth is slow.
        left = max(waiting.deadline for waiting in batch) - asyncio.get_running_loop().time()
        settlements = self._outbox.pending({waiting.token_key for waiting in batch}, SETTLEMENTS_PER_BATCH)
        request = pb.BatchValidateTokensRequest(settlements=settlements, validations=[waiting.request for waiting in batch])
        for waiting in batch:
            waiting.in_flight = True
        started = asyncio.get_running_loop().time()
        try:
            seconds = max(0.0, min(RPC_TIMEOUT, left))
            # Once a second one is asked, the one that is late may admit whom the other one refused.
            response = await self._replicas.ask(
                replica, lambda stub: stub.BatchValidateTokens, request, seconds, beside=lambda: _lose(batch)
            )
            _check_number(len(batch), len(response.validations))
            _check_number(len(settlements), len(response.settlements))
        except BaseException as fault:
            self._metrics.failed()
            self._outbox.failed(settlements)
            error = from_status(fault) if isinstance(fault, grpc.aio.AioRpcError) else fault
            for waiting in batch:
                waiting.in_flight = False
                # An answer that is too large, or garbled, was an answer: what it says was committed.
                waiting.lost |= not isinstance(error, _NOTHING_DONE)
            if isinstance(error, (AuthUnavailable, DatabaseUnavailable, Overloaded)):
                return batch
            if error is fault:
                raise
            raise error from fault
        self._metrics.decided(len(batch), asyncio.get_running_loop().time() - started)
        self._outbox.acknowledged(settlements, response.settlements)
        for waiting in batch:
            waiting.in_flight = False
        return [
            waiting for waiting, result in zip(batch, response.validations, strict=True) if not self._resolve(waiting, result)
        ]

    def _resolve(self, waiting: _Waiting, result: pb.ValidationResult) -> bool:
        """Gives a caller his answer; False when auth is to be asked again."""
        if waiting.answer.done():
            return True
        if result.WhichOneof("result") == "error":
            if result.error.code == _UNAVAILABLE:
                # Auth says of its database that nothing was changed, or, by this, that it did not hear.
                waiting.lost |= result.error.reason == AuthUnavailable.reason
                return False
            self._tell(waiting, from_reason(result.error.reason, result.error.message, code=result.error.code))
        else:
            self._tell(waiting, grant_of(result.response))
        return True

    def _tell(self, waiting: _Waiting, answer: pb.Grant | GatewayError) -> None:
        if waiting.answer.done():
            return
        if isinstance(answer, GatewayError):
            # A try that was lost may still be admitted after this one was refused.
            self._withdraw(waiting)
            waiting.answer.set_exception(_away() if isinstance(answer, _OUR_FAULT) else answer)
        else:
            waiting.answer.set_result(answer)

    def _fail(self, batch: list[_Waiting]) -> None:
        for waiting in batch:
            self._tell(waiting, _away())

    def _give_up(self, waiting: _Waiting) -> None:
        """The caller's second is over."""
        self._tell(waiting, _away())
        while self._queue and self._queue[0].answer.done():
            self._queue.popleft()

    def _withdraw(self, waiting: _Waiting, *, granted: bool = False) -> None:
        """Takes back an admission that may have come to be, or may come yet: auth remembers that should it come later."""
        if waiting.request.request_id and (granted or waiting.in_flight or waiting.lost):
            report = pb.RecordUsageRequest(
                request_id=waiting.request.request_id,
                outcome=pb.OUTCOME_RELEASED,
                source=pb.USAGE_SOURCE_NONE,
                error_code="not_sent",
            )
            self._outbox.append(report, waiting.token_key)

    # -- the connection ------------------------------------------------------------------------------------------------------

    def _reconnect(self) -> asyncio.Task[None]:
        """Has the channel connect, however long that takes; then what waits is sent."""
        if self._reconnecting is None or self._reconnecting.done():
            self._reconnecting = self._run(self._connect())
        return self._reconnecting

    async def _connect(self) -> None:
        await self._replicas.connected()
        self._pump_soon()

    # -- the other RPCs ------------------------------------------------------------------------------------------------------

    async def _ask(self, rpc: Rpc[_A], request: object, until: float) -> _A:
        """One RPC, tried again until this time of the loop while auth is away. Raises AuthUnavailable or what auth refuses."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.wait({self._reconnect()}, timeout=until - loop.time())
            left = until - loop.time()
            replica = self._replicas.choose()
            if left <= _RETRY or replica is None:
                raise _away()
            try:
                with _faults():
                    return await self._replicas.ask(replica, rpc, request, min(RPC_TIMEOUT, left))
            except (AuthUnavailable, DatabaseUnavailable):
                await asyncio.sleep(_RETRY)
            except _OUR_FAULT as error:
                _log.error("auth refuses this proxy", reason=error.reason, error=error.message)
                raise _away() from error

    async def _settle(self, settlements: list[pb.RecordUsageRequest]) -> list[pb.SettlementResult]:
        """Gives settlements to the ledger, for the outbox. Raises GatewayError."""
        replica = self._chosen()
        with _faults():
            request = pb.BatchRecordUsageRequest(settlements=settlements)
            others = self._replicas.choose(beside=replica) is not None
            seconds = _SETTLE_TIMEOUT_BESIDE if others else _SETTLE_TIMEOUT
            response = await replica.ask(replica.stub.BatchRecordUsage, request, seconds)
        return list(response.settlements)

    async def _release_unsent(self, proxy_id: str, sent: Sequence[str]) -> None:
        """Has auth release what a dead process never sent, for the outbox. Raises GatewayError."""
        replica = self._chosen()
        request = pb.ReleaseUnsentRequest(proxy_id=proxy_id, sent_request_ids=sent)
        with _faults():
            response = await replica.ask(replica.stub.ReleaseUnsent, request, _SETTLE_TIMEOUT)
        if response.released:
            _log.info("unsent_calls_released", proxy_id=proxy_id, calls=response.released)

    async def _settle_pending(self, key: bytes, until: float) -> None:
        """Has what a token still has in the outbox booked, so that its holder finds the call that has just been answered."""
        settlements = self._outbox.pending({key})
        if not settlements:
            return
        try:
            response = await self._ask(
                lambda stub: stub.BatchRecordUsage, pb.BatchRecordUsageRequest(settlements=settlements), until
            )
            _check_number(len(settlements), len(response.settlements))
        except BaseException:
            self._outbox.failed(settlements)
            raise
        self._outbox.acknowledged(settlements, response.settlements)

    @survives
    async def _keep_beating(self) -> None:
        with contextlib.suppress(TimeoutError):  # at a healthy start auth is connected in a moment: no reason for a line
            async with asyncio.timeout(BEAT_INTERVAL):
                await self._replicas.connected()
        while True:
            try:
                replica = self._chosen()
                with _faults():
                    heard = await replica.ask(replica.stub.Beat, self._beat, PROBE_INTERVAL)
            except GatewayError as error:
                _log.info("auth does not hear this proxy", reason=error.reason)
                await asyncio.sleep(_RETRY * 10)
                continue
            # What stands as open for this process and is not known to it ended long ago, in a ledger that was put back to an
            # older copy: its hold, and its place among the token's parallel calls, would last as long as this process beats.
            unknown = [request_id for request_id in heard.open_request_ids if not self._outbox.knows(request_id)]
            del self._beat.disowned_request_ids[:]
            self._beat.disowned_request_ids.extend(unknown)
            if unknown:
                _log.warning("calls_disowned", calls=len(unknown))
            await asyncio.sleep(BEAT_INTERVAL)

    def _chosen(self) -> Replica:
        """The server to be asked next. Raises AuthUnavailable."""
        replica = self._replicas.choose()
        if replica is None:
            raise _away()
        return replica

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Turns an RPC's fault into its GatewayError."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_status(error) from error


def _lose(batch: list[_Waiting]) -> None:
    for waiting in batch:
        waiting.lost = True


def _check_number(asked: int, answered: int) -> None:
    if asked != answered:
        raise Internal(f"auth gave {answered} answers to {asked} items")


def _away() -> AuthUnavailable:
    return AuthUnavailable("The service that checks tokens does not answer. Try again in a moment.", retry_after=1.0)
