"""The auth servers that there are: a channel to each, which of them a request goes to, and whom to ask beside one that is late.

gRPC's own balancing spreads calls blindly: a server that hangs, or whose machine is gone without a word, gets every second call
until the keepalive ends its connection. Here each server has a channel of its own, and one that did not answer is passed over
until it answers again, as long as there is another; so is one that says of itself that it is not serving, as before it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.process.logs import get_logger
from gateway.process.tasks import survives
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.stubs.auth.v1 import auth_pb2_grpc

if TYPE_CHECKING:
    from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceAsyncStub  # in the types of the stubs alone

RESOLVE_INTERVAL: Final = 1.0
"""Seconds between two looks at what a name stands for, so that a replica that was added is found within about a second."""
PROBE_INTERVAL: Final = 2.0
"""Seconds without an answer after which a server is asked for nothing, and seconds that it has for this answer."""
TURN: Final = 0.5
"""Seconds for which one server of several equals is asked before the next one is."""
SLOW: Final = 0.1
"""Seconds without an answer after which what comes next goes elsewhere."""
LATE: Final = 0.3
"""Seconds without an answer after which another server is asked, too: both fit into what a batch of validations has."""
RENEWED_WITHIN: Final = 1.0
"""Seconds in which a server that ended a connection, as each does every half minute, is expected to have a new one."""
MOST_SECONDS: Final = 2  # as many as batches are in flight: when a server hangs, no more is on its way to it
SECONDS_EVERY: Final = 1.0
_PROBE_AGAIN: Final = 0.5
_LISTEN_AGAIN: Final = 0.1
_CLOSING: Final = 5.0  # seconds for what is on its way when a server leaves the list
_NO_ANSWER: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})

_log = get_logger(__name__)

_A = TypeVar("_A")
Dial = Callable[[str], grpc.aio.Channel]
Rpc = Callable[["AuthServiceAsyncStub"], Callable[..., Awaitable[_A]]]


@dataclass(eq=False)
class Replica:
    """One auth server.

    address: as gRPC dials it, such as `ipv4:10.0.0.7:50051`.
    answering: whether it answered the last time; a new one has yet to.
    serving: what it says of itself.
    begun: when each RPC began that is on its way. turn: when it was chosen last, for taking turns.
    """

    address: str
    channel: grpc.aio.Channel
    answering: bool = False
    serving: bool = False
    answered_at: float = float("-inf")
    begun: deque[float] = field(default_factory=deque)
    turn: int = 0
    listed: bool = True
    outdated: bool = False
    """Whether it is connected with a certificate that was renewed since."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has connected, so that it is asked at once whether it answers."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stub = auth_pb2_grpc.AuthServiceStub(self.channel)

    @property
    def good(self) -> bool:
        """Whether nothing speaks against it."""
        return self.answering and self.serving and self.connected

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    async def ask(self, rpc: Callable[..., Awaitable[_A]], request: object, seconds: float) -> _A:
        """One RPC of this replica's stub; notes whether it was answered. Raises grpc.aio.AioRpcError."""
        began = asyncio.get_running_loop().time()
        self.begun.append(began)
        try:
            response = await rpc(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            self.answering = error.code() not in _NO_ANSWER
            raise
        else:
            self.note_answer()
            return response
        finally:
            self.begun.remove(began)

    def is_slow(self, now: float) -> bool:
        """Whether something has been on its way to it for long."""
        return bool(self.begun) and now - self.begun[0] > SLOW

    def has_room(self, now: float) -> bool:
        """Whether it does what it is asked: nothing is on its way to it, or it has just answered."""
        return not self.begun or now - self.answered_at < SLOW

    def note_answer(self) -> None:
        """Notes that it has answered just now."""
        self.answering = True
        self.answered_at = asyncio.get_running_loop().time()


class Replicas:
    """All auth servers behind an address.

    address: `host:port`, several with commas between, or `dns:///host:port`; a name means all its addresses, now and later.
    dial: makes a channel to one address.
    """

    def __init__(self, address: str, dial: Dial) -> None:
        self._places = [place.rpartition(":") for place in address.removeprefix("dns:///").split(",")]
        self._dial = dial
        self._replicas: dict[str, Replica] = {}
        self._turn = 0
        self._current: Replica | None = None
        self._seconds: deque[float] = deque(maxlen=MOST_SECONDS)
        self._turn_ends = float("-inf")
        self._changed = asyncio.Event()
        self._resolving: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._retiring: asyncio.Task[None] | None = None
        self._number = 0  # of connections that were made anew

    async def start(self) -> None:
        """Begins to connect. Waits for nobody."""
        if all(_is_address(host) for host, _, _ in self._places):
            self._take([_dialled(host, int(port)) for host, _, port in self._places])
        else:
            self._resolving = asyncio.create_task(self._keep_resolving())

    async def close(self) -> None:
        """Ends all connections."""
        if self._resolving is not None:
            self._resolving.cancel()
            await asyncio.gather(self._resolving, return_exceptions=True)
        if self._retiring is not None:
            self._retiring.cancel()
            await asyncio.gather(self._retiring, return_exceptions=True)
        await asyncio.gather(*(_end(replica, 0.0) for replica in self._replicas.values()), *self._closing)
        self._replicas.clear()

    @property
    def ready(self) -> bool:
        """Whether one answered the last time it was asked, and is connected or was a moment ago: connections are renewed."""
        since = time.monotonic() - RENEWED_WITHIN  # the loop's clock, which the thread of the metrics cannot ask
        return any(one.answering and (one.connected or one.answered_at > since) for one in list(self._replicas.values()))

    def choose(self, *, beside: Replica | None = None) -> Replica | None:
        """The one to be asked next, the best of those connected; None: there is none.

        Equals take turns of `TURN` seconds. What is asked meanwhile goes to one of them, whose transactions take it together;
        spread over two, calls of one token would wait for each other's locks.
        beside: another one than this, only a good one, and only if it does what it is asked.
        """
        now = asyncio.get_running_loop().time()
        found = [replica for replica in self._replicas.values() if replica is not beside and replica.connected]
        if beside is not None:
            return next((replica for replica in found if replica.good and replica.has_room(now)), None)
        if not found:
            return None
        if now >= self._turn_ends:
            self._current = None

        def faults(one: Replica) -> tuple[bool, bool, bool, bool, bool, int]:
            return (not one.answering, not one.serving, not one.listed, one.is_slow(now), one is not self._current, one.turn)

        best = min(found, key=faults)
        if best is not self._current:
            self._turn += 1
            best.turn, self._current, self._turn_ends = self._turn, best, now + TURN
        return best

    async def ask(
        self,
        replica: Replica,
        rpc: Rpc[_A],
        request: object,
        seconds: float,
        *,
        beside: Callable[[], None] = lambda: None,
    ) -> _A:
        """One server's answer; another one is asked for the same when it is late, and the sooner answer counts.

        For what both together do once: a validation is known by its id, a settlement by what it says.
        rpc: a method of the stub. seconds: for all of it. beside: called before a second one is asked.
        Raises grpc.aio.AioRpcError.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        first = loop.create_task(replica.ask(rpc(replica.stub), request, seconds))
        asked = {first}
        try:
            await asyncio.wait(asked, timeout=LATE)
            if not first.done() and (other := self._second(beside=replica)) is not None:
                replica.answering = False
                beside()
                asked.add(loop.create_task(other.ask(rpc(other.stub), request, until - loop.time())))
            while True:
                done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if len(asked) == 1 or task.exception() is None:
                        return task.result()
                    asked.discard(task)
        finally:
            for task in asked:
                if not task.cancel() and not task.cancelled():
                    task.exception()  # it was answered in the same moment, and nobody else looks

    def _second(self, *, beside: Replica) -> Replica | None:
        """Another one that may be asked, too. Seldom: where all are slow, asking twice would make them slower."""
        now = asyncio.get_running_loop().time()
        if len(self._seconds) == self._seconds.maxlen and now - self._seconds[0] < SECONDS_EVERY:
            return None
        other = self.choose(beside=beside)
        if other is not None:
            self._seconds.append(now)
        return other

    async def connected(self) -> None:
        """Returns as soon as one is connected."""
        while not any(replica.connected for replica in self._replicas.values()):
            self._changed.clear()
            await self._changed.wait()

    # -- who is there --------------------------------------------------------------------------------------------------------

    @survives
    async def _keep_resolving(self) -> None:
        while True:
            self._take(await self._resolve())
            await asyncio.sleep(RESOLVE_INTERVAL)

    async def _resolve(self) -> list[str]:
        """The addresses that there are now; none when a name cannot be looked up, which says nothing of its servers."""
        loop = asyncio.get_running_loop()
        found: list[str] = []
        for host, _, port in self._places:
            try:
                told = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                _log.debug("auth's name is not found", host=host, error=str(error))
                return []
            found += [_dialled(str(where[0]), int(port)) for *_, where in told]
        return found

    def _take(self, addresses: Collection[str]) -> None:
        """Takes what a name stands for now. Who is no longer named goes when another one can take his place."""
        for address in addresses:
            if address not in self._replicas:
                _log.info("auth found", address=address)
                self._add(Replica(address, self._dial(address)))
        for replica in self._replicas.values():
            replica.listed = not replica.outdated and (replica.address in addresses or not addresses)
        self._retire()

    def _retire(self) -> None:
        """Lets go of servers that are no longer named, and of connections with an old certificate, where others are good."""
        others = any(replica.listed and replica.good for replica in self._replicas.values())
        for key, replica in [(key, replica) for key, replica in self._replicas.items() if not replica.listed]:
            if others or not replica.connected:
                if not replica.outdated:
                    _log.info("auth gone", address=replica.address)
                del self._replicas[key]
                task = asyncio.create_task(_end(replica, _CLOSING))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    def redial(self, dial: Dial) -> None:
        """Connects anew to each server, with another certificate; a connection goes when another one is good, its calls ended.

        dial: makes a channel to one address, from now on.
        """
        self._dial = dial
        for replica in [replica for replica in self._replicas.values() if not replica.outdated]:
            del self._replicas[replica.address]
            self._number += 1
            self._replicas[f"{replica.address} before {self._number}"] = replica
            replica.outdated, replica.listed = True, False
            self._add(Replica(replica.address, dial(replica.address)))
        if self._retiring is None or self._retiring.done():
            self._retiring = asyncio.create_task(self._keep_retiring())

    @survives
    async def _keep_retiring(self) -> None:
        while any(replica.outdated for replica in self._replicas.values()):
            await asyncio.sleep(_LISTEN_AGAIN)
            self._retire()

    def _add(self, replica: Replica) -> None:
        self._replicas[replica.address] = replica
        work: list[Coroutine[Any, Any, None]] = [self._keep_watching(replica), _keep_probing(replica), _keep_listening(replica)]
        replica.tasks = [asyncio.create_task(each) for each in work]

    @survives
    async def _keep_watching(self, replica: Replica) -> None:
        """Has the channel connect, whenever it is not, and tells those who wait for that."""
        while True:
            state = replica.channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                replica.woken.set()
                self._changed.set()
            await replica.channel.wait_for_state_change(state)


@survives
async def _keep_probing(replica: Replica) -> None:
    """Asks for nothing when nobody else asked for something, so that what is known of the server is true to life."""
    loop = asyncio.get_running_loop()
    while True:
        if replica.connected and (not replica.answering or loop.time() - replica.answered_at >= PROBE_INTERVAL):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await replica.ask(replica.stub.BatchRecordUsage, pb.BatchRecordUsageRequest(), PROBE_INTERVAL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PROBE_AGAIN):
                await replica.woken.wait()
        replica.woken.clear()


@survives
async def _keep_listening(replica: Replica) -> None:
    """Hears from the server whether it is serving. One that has no such service is, as far as it can be told."""
    stub = health_pb2_grpc.HealthStub(replica.channel)
    while True:
        try:
            async for told in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
                replica.serving = told.status == health_pb2.HealthCheckResponse.SERVING
        except grpc.aio.AioRpcError as error:
            replica.serving = error.code() is grpc.StatusCode.UNIMPLEMENTED
        else:
            replica.serving = False
        await asyncio.sleep(_LISTEN_AGAIN)


async def _end(replica: Replica, grace: float) -> None:
    for task in replica.tasks:
        task.cancel()
    await asyncio.gather(*replica.tasks, return_exceptions=True)
    await replica.channel.close(grace)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _dialled(host: str, port: int) -> str:
    host = host.strip("[]")
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
