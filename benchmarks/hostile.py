"""Hostile callers, each kind a function in a table: unfinished heads, callers who never read, bodies that are slow to read.

Runs in a process of its own (`python -m benchmarks.hostile '<json>'`), each kind from a loopback address of its own, stops by
itself, and prints as JSON what each kind did. All loops are bounded in time, and in connections or calls a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvloop

KIB, MIB = 1024, 1024 * 1024


@dataclass
class Target:
    """port: of the edge. token: a valid client token of somebody who means harm. seconds: how long the callers go on.

    model, stream_model: what is asked for plainly, and in slow streams.
    """

    port: int
    token: str
    model: str
    stream_model: str
    seconds: float
    done: Counter[str] = field(default_factory=Counter)
    """What one kind did: connections opened, statuses it was answered with."""
    source: str = "127.0.0.1"


Kind = Callable[[Target], Awaitable[None]]


# -- ways to send ------------------------------------------------------------------------------------------------------------


async def connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """A connection; None where the edge takes none."""
    try:
        async with asyncio.timeout(10):
            opened = await asyncio.open_connection("127.0.0.1", target.port, local_addr=(target.source, 0))
    except (OSError, TimeoutError):
        target.done["not connected"] += 1
        return None
    target.done["connections"] += 1
    return opened


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A request with this body."""
    lines = [f"POST {path} HTTP/1.1", "Host: gateway", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def send(target: Target, request: bytes, *, half_close: bool = False) -> None:
    """Sends one request over a connection of its own, and reads the answer to its end or for ten seconds."""
    opened = await connect(target)
    if opened is None:
        return
    reader, writer = opened
    try:
        async with asyncio.timeout(10):
            writer.write(request)
            await writer.drain()
            if half_close:
                writer.write_eof()
            head = await reader.readuntil(b"\r\n\r\n")
            while head[9:10] == b"1":  # `100 Continue`, by which the edge asks whether the caller is still there
                head = await reader.readuntil(b"\r\n\r\n")
            target.done[head[9:12].decode("latin-1")] += 1
            while await reader.read(64 * KIB):
                if b"\r\nConnection: close" not in head:
                    break
    except (OSError, TimeoutError, EOFError, ValueError):
        target.done["not answered"] += 1
    finally:
        writer.close()


async def each(target: Target, per_second: float, request: Callable[[int], bytes], *, half_close: bool = False) -> None:
    """Sends a request at a steady pace, each without waiting for the one before."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for number in itertools.count():
            due = started + number / per_second
            if due >= started + target.seconds:
                return
            await asyncio.sleep(max(0.0, due - loop.time()))
            tasks.create_task(send(target, request(number), half_close=half_close))


async def hold(target: Target, connections: int, keep: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
    """Opens connections and does the same on each until the time is up; a connection that was closed is not opened again."""

    async def one() -> None:
        opened = await connect(target)
        if opened is None:
            return
        _, writer = opened
        try:
            async with asyncio.timeout(target.seconds):
                await keep(writer)
                await asyncio.sleep(target.seconds)
        except TimeoutError:
            pass
        except OSError:
            target.done["closed by the edge"] += 1
        finally:
            writer.transport.abort()

    async with asyncio.TaskGroup() as tasks:
        for number in range(connections):
            tasks.create_task(one())
            if number % 50 == 49:
                await asyncio.sleep(0.02)


def pipeline(request: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """Sends one request after another as fast as they are taken, and reads nothing."""

    async def keep(writer: asyncio.StreamWriter) -> None:
        assert isinstance(writer.transport, asyncio.Transport) or hasattr(writer.transport, "pause_reading")
        writer.transport.pause_reading()
        for _ in range(5_000):
            writer.write(request * 20)
            await writer.drain()
            await asyncio.sleep(0.05)

    return keep


# -- bodies ------------------------------------------------------------------------------------------------------------------


def numbers(size: int) -> bytes:
    """An object with many numbers that JSON readers are slow at."""
    return b'{"model":"hostile","messages":[' + b",".join([b"1e308"] * (size // 6)) + b"]}"


def nested(size: int) -> bytes:
    """Many lists in lists."""
    return b'{"model":"hostile","messages":[' + b",".join([b"[" * 60 + b"]" * 60] * (size // 121)) + b"]}"


def chat(model: str, content: str) -> bytes:
    """A chat completion."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 16}
    return json.dumps(body, ensure_ascii=False).encode()


def odd_types(number: int) -> tuple[str, bytes]:
    """A route, and a body whose fields have types that nobody expects."""
    values = [None, True, -1, 1.5, "", [], {}, [[]], {"a": []}]
    value, other = values[number % 9], values[number // 9 % 9]
    bodies = [
        ("/v1/chat/completions", {"model": value, "messages": other}),
        ("/v1/chat/completions", {"model": "hostile", "messages": [{"role": value, "content": other}]}),
        ("/v1/chat/completions", {"model": "hostile", "messages": [{}], "tools": [{"type": value}], "service_tier": other}),
        ("/auth/login", {"kind": value, "username": other, "password": value}),
        ("/admin/tokens", {"name": value, "allowed_models": other}),
    ]
    path, body = bodies[number % 5]
    return path, json.dumps(body).encode()


# -- the kinds ---------------------------------------------------------------------------------------------------------------


async def _logins_of_slow_numbers(target: Target) -> None:
    body = numbers(580 * KIB)
    await each(target, 0.8, lambda _: post("/auth/login", body))


async def _slow_bodies_of_strangers(target: Target) -> None:
    bodies = [numbers(60 * KIB), nested(60 * KIB)]
    await each(
        target, 4, lambda number: post("/v1/chat/completions", bodies[number % 2], Authorization="Bearer nobody-knows-it")
    )


async def _slow_bodies_to_admin(target: Target) -> None:
    body = numbers(60 * KIB)
    await each(target, 2, lambda _: post("/admin/tokens", body, Authorization="Bearer a-session-that-was-made-up-here"))


async def _slow_bodies_with_a_token(target: Target) -> None:
    bodies = [
        chat(target.model, "\u0301\u0327" * (256 * KIB)),
        chat(target.model, "".join(chr(0x20000 + code % 0xA000) for code in range(MIB))),
        numbers(4 * MIB),
        nested(4 * MIB),
    ]
    await each(
        target, 0.2, lambda number: post("/v1/chat/completions", bodies[number % 4], Authorization=f"Bearer {target.token}")
    )


async def _large_bodies(target: Target) -> None:
    body = chat(target.model, "x" * (30 * MIB))
    await each(target, 0.3, lambda _: post("/v1/chat/completions", body, Authorization=f"Bearer {target.token}"))


async def _large_refused_bodies(target: Target) -> None:
    body = chat("a-model-that-nobody-serves", "x" * (30 * MIB))
    await each(target, 0.2, lambda _: post("/v1/chat/completions", body, Authorization=f"Bearer {target.token}"))


async def _endless_heads(target: Target) -> None:
    async def keep(writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: gateway\r\n")
        for number in range(125):
            writer.write(b"x-%d: %s\r\n" % (number, b"a" * 8_000))
            await writer.drain()

    while target.seconds > 0:
        started = asyncio.get_running_loop().time()
        whole, target.seconds = target.seconds, min(target.seconds, 12.0)
        await hold(target, 300, keep)
        target.seconds = whole - (asyncio.get_running_loop().time() - started)


async def _half_heads_behind_a_request(target: Target) -> None:
    async def keep(writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\nGET /healthz HTTP/1.1\r\nHost: gat")
        await writer.drain()

    await hold(target, 200, keep)


async def _never_reading(target: Target) -> None:
    await hold(target, 500, pipeline(b"GET /openapi.json HTTP/1.1\r\nHost: gateway\r\n\r\n"))


async def _never_reading_refusals(target: Target) -> None:
    await hold(target, 100, pipeline(b"GET /nothing HTTP/1.1\r\nHost: gateway\r\n\r\n"))


async def _idle_connections(target: Target) -> None:
    async def keep(_: asyncio.StreamWriter) -> None:
        pass

    await hold(target, 10_050, keep)


async def _slow_senders(target: Target) -> None:
    async def keep(writer: asyncio.StreamWriter) -> None:
        writer.write(post("/v1/chat/completions", b"")[:-4].replace(b"Length: 0", b"Length: 4096") + b"\r\n\r\n")
        for _ in range(round(target.seconds)):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1)

    await hold(target, 200, keep)


async def _logins_under_new_names(target: Target) -> None:
    def request(number: int) -> bytes:
        return post(
            "/auth/login", json.dumps({"username": f"admin-{number}", "password": "a guess", "kind": "terminal"}).encode()
        )

    await each(target, 20, request)


async def _unknown_tokens(target: Target) -> None:
    body = chat(target.model, "Hi")
    await each(target, 30, lambda number: post("/v1/chat/completions", body, Authorization=f"Bearer sk-made-up-{number:08}"))


async def _odd_types(target: Target) -> None:
    def request(number: int) -> bytes:
        path, body = odd_types(number)
        return post(path, body, Authorization=f"Bearer {target.token}")

    await each(target, 10, request)


async def _bad_chunks(target: Target) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {target.token}\r\n"
    request = (head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n").encode()
    await each(target, 5, lambda _: request)


async def _half_closed(target: Target) -> None:
    request = post("/v1/chat/completions", chat(target.model, "Hi"), Authorization=f"Bearer {target.token}")
    await each(target, 5, lambda _: request, half_close=True)


async def _leaving(target: Target) -> None:
    """Callers of streams who reset the connection somewhere in them."""
    body = json.loads(chat(target.stream_model, "Hi")) | {"stream": True}
    request = post("/v1/chat/completions", json.dumps(body).encode(), Authorization=f"Bearer {target.token}")
    deadline = asyncio.get_running_loop().time() + target.seconds
    while asyncio.get_running_loop().time() < deadline:
        if (opened := await connect(target)) is not None:
            _, writer = opened
            with contextlib.suppress(OSError):
                writer.write(request)
                await asyncio.sleep(random.uniform(0.0, 0.4))
            writer.transport.abort()
        await asyncio.sleep(0.1)


HALF_CLOSED = "5 half-closed calls/s"
"""No harm is meant by these: each of them is to be answered."""

KINDS: dict[str, Kind] = {
    "logins with 580 KiB of 1e308": _logins_of_slow_numbers,
    "slow bodies, wrong token": _slow_bodies_of_strangers,
    "slow bodies, made-up session": _slow_bodies_to_admin,
    "slow bodies, valid token": _slow_bodies_with_a_token,
    "30 MB bodies, valid token": _large_bodies,
    "30 MB bodies that are refused": _large_refused_bodies,
    "300 heads without an end": _endless_heads,
    "200 half heads behind a request": _half_heads_behind_a_request,
    "500 that never read /openapi.json": _never_reading,
    "100 that never read refusals": _never_reading_refusals,
    "10,050 idle connections": _idle_connections,
    "200 bodies at 1 byte/s": _slow_senders,
    "20 logins/s under new names": _logins_under_new_names,
    "30 unknown tokens/s": _unknown_tokens,
    "10 odd types/s": _odd_types,
    "5 bad chunks/s": _bad_chunks,
    HALF_CLOSED: _half_closed,
    "streams that are left": _leaving,
}


async def run(*, kinds: list[str], **order: Any) -> dict[str, dict[str, int]]:
    """All these kinds at once; what each did. order: the fields of `Target`."""
    targets = {name: Target(**order, source=f"127.0.1.{10 + list(KINDS).index(name)}") for name in kinds}
    async with asyncio.TaskGroup() as tasks:
        for name in kinds:
            tasks.create_task(KINDS[name](targets[name]))
    return {name: dict(target.done) for name, target in targets.items()}


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.nice(5)  # the callers are on machines of their own, and must not take the calm caller's time on this one
    print(json.dumps(uvloop.run(run(**json.loads(sys.argv[1])))))
