"""How the scripted provider answers: one function a fault, chosen by the model's name. The table is `BEHAVIOURS`.

| model `mock-…` | what it does |
|---|---|
| any name that is not here | a whole answer, plain or streamed, with honest usage |
| `no-usage`, `usage-null` | no usage at all; a usage that is null |
| `usage-negative`, `-text`, `-float`, `-huge` | completion_tokens of -1, "12", 1.5, 10^18 |
| `usage-bool`, `-object`, `-dear` | completion_tokens of true, {"n": 5}, 10^8 |
| `usage-input-negative`, `-cached-negative` | prompt_tokens of -1; cached_tokens of -5 |
| `usage-empty`, `-list`, `-string` | usage is {}, [1, 2], "many" |
| `usage-partial` | only prompt_tokens |
| `usage-triple` | bills three times what it generated, whatever the limit |
| `usage-everywhere`, `usage-unasked` | usage so far in each chunk; a usage chunk whether asked or not |
| `silent`, `headers-only`, `hang` | reads the request, then: nothing; only status and headers; half of the body |
| `reset`, `close` | reads the request, then RST; FIN |
| `cut`, `cut-fin`, `short` | RST at half of the body; FIN there; FIN before the announced length |
| `bad-chunk`, `bad-json` | a broken chunk size at half; 200 with no JSON |
| `html`, `no-content`, `redirect` | 200 with HTML; 204; 302 to itself |
| `status-NNN` | that status with an error object (and Retry-After: 7 on 429 and 503) |
| `stream-error` | an error event at half of a stream, then the end |
| `gzip`, `bad-gzip`, `huge-header` | a compressed body; a body that only says so; a header of 64 KiB |
| `drip` | the body one byte at a time, a byte a second |
| `echo`, `echo-error` | all request headers in headers and content (200); in an error object (400) |

The prompt steers the rest, as words `name:value` anywhere in it: `nonce:` (names the call in the ledger), `tokens:` (output
tokens, 10), `prompt:` (input tokens told, 10), `cached:` (part of them told as cached), `unique:1` (input tokens told are a
number of the nonce's own), `chunks:` (stream chunks, as many as tokens up to 10), `seconds:` (how long the whole takes, 0).
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from tests.fakes.call import Call

WORD = "word "
NEVER = 3600.0


@dataclass
class Script:
    """One call's answer, ready to be sent or spoilt."""

    request: web.BaseRequest
    call: Call
    body: dict

    @property
    def stream(self) -> bool:
        return self.call.stream

    def number(self, name: str, default: float) -> float:
        return float(self.call.directives.get(name, default))

    @property
    def asked_tokens(self) -> int:
        """What the prompt asks for, within the limit that the request states."""
        limit = self.body.get("max_completion_tokens", self.body.get("max_tokens"))
        wanted = int(self.number("tokens", 10))
        return min(wanted, limit) if isinstance(limit, int) else wanted

    @property
    def wants_usage_chunk(self) -> bool:
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    def usage(self, generated: int) -> dict:
        prompt = int(self.number("prompt", 10))
        if self.call.directives.get("unique"):
            prompt = 100 + zlib.crc32(self.call.nonce.encode()) % 100_000
        usage = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
        if cached := int(self.number("cached", 0)):
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return usage

    def completion(self, content: str, usage: object, *, tell: bool = True) -> dict:
        answer = {
            "id": f"chatcmpl-{self.call.number}",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": self.call.model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        }
        if tell:
            answer["usage"] = usage
            self.call.usage_told = usage
        return answer

    def chunk(self, delta: dict | None, finish: str | None = None, **extra: object) -> bytes:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
        event = {
            "id": f"chatcmpl-{self.call.number}",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": self.call.model,
            "choices": choices,
            **extra,
        }
        return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"

    async def open(self, content_type: str | None = None, **headers: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"x-request-id": f"up-{self.call.number}", **headers})
        response.content_type = content_type or ("text/event-stream" if self.stream else "application/json")
        self.call.status = 200
        await response.prepare(self.request)
        return response

    async def send(self, response: web.StreamResponse, data: bytes) -> None:
        await response.write(data)
        self.call.bytes_sent += len(data)

    def break_off(self, *, reset: bool) -> None:
        """Ends the connection at once, by RST or by FIN after what is written."""
        self.call.broken = True
        transport = self.request.transport
        if transport is None:
            return
        if reset:
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()

    def write_raw(self, data: bytes) -> None:
        assert self.request.transport is not None
        self.request.transport.write(data)
        self.call.status = 200
        self.call.bytes_sent += len(data)


Behaviour = Callable[[Script], Awaitable[web.StreamResponse]]


async def whole(
    script: Script,
    *,
    usage: Callable[[dict], object] = lambda honest: honest,
    tell: bool = True,
    everywhere: bool = False,
    unasked: bool = False,
    half: Callable[[web.StreamResponse], Awaitable[None]] | None = None,
    **headers: str,
) -> web.StreamResponse:
    """A whole answer; `half` is awaited at half of it, and may end it there."""
    total, seconds = script.asked_tokens, script.number("seconds", 0)
    if not script.stream:
        await asyncio.sleep(seconds)
        script.call.tokens_generated = total
        told = usage(script.usage(total))
        data = json.dumps(script.completion(WORD * total, told, tell=tell)).encode()
        if half is None:
            script.call.status = 200
            script.call.bytes_sent = len(data)
            return web.Response(body=data, content_type="application/json", headers=headers or None)
        response = await script.open(**headers)
        await script.send(response, data[: len(data) // 2])
        await half(response)
        await script.send(response, data[len(data) // 2 :])
        return response
    response = await script.open(**headers)
    await script.send(response, script.chunk({"role": "assistant", "content": ""}))
    chunks = max(1, min(int(script.number("chunks", min(total, 10))), max(total, 1)))
    done = 0
    for index in range(chunks):
        if half is not None and index == chunks // 2:
            await half(response)
        if seconds:
            await asyncio.sleep(seconds / chunks)
        upto = total * (index + 1) // chunks
        extra = {}
        if everywhere:
            script.call.usage_told = extra["usage"] = usage(script.usage(upto))
        script.call.tokens_generated = upto
        await script.send(response, script.chunk({"content": WORD * (upto - done)}, **extra))
        done = upto
    await script.send(response, script.chunk({}, "stop"))
    if tell and not everywhere and (script.wants_usage_chunk or unasked):
        script.call.usage_told = usage(script.usage(total))
        await script.send(response, script.chunk(None, usage=script.call.usage_told))
    await script.send(response, b"data: [DONE]\n\n")
    return response


def _completion_tokens(value: object) -> Behaviour:
    return lambda script: whole(script, usage=lambda honest: honest | {"completion_tokens": value, "total_tokens": value})


async def _usage_triple(script: Script) -> web.StreamResponse:
    def triple(honest: dict) -> dict:
        return {name: count * 3 for name, count in honest.items() if isinstance(count, int)}

    return await whole(script, usage=triple)


async def _silent(script: Script) -> web.StreamResponse:
    await asyncio.sleep(NEVER)
    return web.Response()


async def _headers_only(script: Script) -> web.StreamResponse:
    response = await script.open()
    await asyncio.sleep(NEVER)
    return response


async def _hang(script: Script) -> web.StreamResponse:
    async def forever(response: web.StreamResponse) -> None:
        await asyncio.sleep(NEVER)

    return await whole(script, half=forever)


def _ended_at_once(*, reset: bool) -> Behaviour:
    async def behave(script: Script) -> web.StreamResponse:
        script.break_off(reset=reset)
        return web.Response()

    return behave


def _ended_at_half(*, reset: bool) -> Behaviour:
    async def behave(script: Script) -> web.StreamResponse:
        async def end(response: web.StreamResponse) -> None:
            await asyncio.sleep(0.02)  # lets what is written reach the reader before an RST may overtake it
            script.break_off(reset=reset)
            raise ConnectionResetError

        return await whole(script, half=end)

    return behave


async def _short(script: Script) -> web.StreamResponse:
    kind = b"text/event-stream" if script.stream else b"application/json"
    data = script.chunk({"content": WORD}) if script.stream else b'{"id":"x","choices":[{"message":{"content":"word'
    script.call.tokens_generated = 1
    script.write_raw(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nContent-Length: 5000\r\n\r\n" + data)
    script.break_off(reset=False)
    return web.Response()


async def _bad_chunk(script: Script) -> web.StreamResponse:
    kind = b"text/event-stream" if script.stream else b"application/json"
    data = script.chunk({"content": WORD}) if script.stream else b'{"id":"x",'
    script.call.tokens_generated = 1
    head = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    script.write_raw(head + b"%x\r\n%s\r\n" % (len(data), data) + b"zz\r\nnonsense\r\n")
    script.break_off(reset=False)
    return web.Response()


async def _bad_json(script: Script) -> web.StreamResponse:
    if not script.stream:
        script.call.status = 200
        return web.Response(body=b'{"id": "x", "choices": [', content_type="application/json")

    async def nonsense(response: web.StreamResponse) -> None:
        await script.send(response, b'data: {"id": "x", "choices": [\n\n')

    return await whole(script, half=nonsense)


async def _html(script: Script) -> web.StreamResponse:
    script.call.status = 200
    return web.Response(text="<html><body>It works!</body></html>", content_type="text/html")


async def _no_content(script: Script) -> web.StreamResponse:
    script.call.status = 204
    return web.Response(status=204)


async def _redirect(script: Script) -> web.StreamResponse:
    script.call.status = 302
    return web.Response(status=302, headers={"Location": f"http://{script.request.host}/v1/elsewhere"})


async def _stream_error(script: Script) -> web.StreamResponse:
    if not script.stream:
        return await status(script, 500)

    async def fail(response: web.StreamResponse) -> None:
        error = {"error": {"message": "The server had an error", "type": "server_error", "param": None, "code": None}}
        await script.send(response, b"data: " + json.dumps(error).encode() + b"\n\n")
        await response.write_eof()
        script.break_off(reset=False)
        raise ConnectionResetError

    return await whole(script, half=fail)


async def _gzip(script: Script) -> web.StreamResponse:
    if script.stream:
        return await whole(script)
    script.call.tokens_generated = script.asked_tokens
    told = script.usage(script.asked_tokens)
    data = gzip.compress(json.dumps(script.completion(WORD * script.asked_tokens, told)).encode())
    script.call.status, script.call.bytes_sent = 200, len(data)
    return web.Response(body=data, content_type="application/json", headers={"Content-Encoding": "gzip"})


async def _bad_gzip(script: Script) -> web.StreamResponse:
    script.call.status = 200
    return web.Response(body=b"not gzip at all", content_type="application/json", headers={"Content-Encoding": "gzip"})


async def _drip(script: Script) -> web.StreamResponse:
    script.call.tokens_generated = script.asked_tokens
    data = json.dumps(script.completion(WORD * script.asked_tokens, script.usage(script.asked_tokens))).encode()
    if script.stream:
        data = script.chunk({"content": WORD}) + b"data: [DONE]\n\n"
    response = await script.open()
    for byte in data:
        await script.send(response, bytes([byte]))
        await asyncio.sleep(1.0)
    return response


def _received(script: Script) -> str:
    return "\n".join(f"{name}: {value}" for name, value in script.call.headers)


async def _echo(script: Script) -> web.StreamResponse:
    headers = {f"x-echo-{name}": value for name, value in script.call.headers}
    headers["Set-Cookie"] = "tracker=1"
    headers["Server"] = "mock/1"
    if not script.stream:
        answer = script.completion(_received(script), script.usage(script.asked_tokens))
        script.call.status, script.call.tokens_generated = 200, script.asked_tokens
        return web.json_response(answer, headers=headers)

    async def tell(response: web.StreamResponse) -> None:
        await script.send(response, script.chunk({"content": _received(script)}))

    return await whole(script, half=tell, **headers)


async def _echo_error(script: Script) -> web.StreamResponse:
    return await status(script, 400, message=f"You sent: {_received(script)}")


async def status(script: Script, code: int, message: str = "") -> web.StreamResponse:
    """An error status with OpenAI's error object."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
    error = {
        "message": message or f"mock answers {code}",
        "type": kinds.get(code, "server_error"),
        "param": None,
        "code": "rate_limit_exceeded" if code == 429 else None,
    }
    headers = {"Retry-After": "7"} if code in {429, 503} else {}
    script.call.status = code
    return web.json_response({"error": error}, status=code, headers=headers)


BEHAVIOURS: dict[str, Behaviour] = {
    "no-usage": lambda script: whole(script, tell=False),
    "usage-null": lambda script: whole(script, usage=lambda honest: None),
    "usage-negative": _completion_tokens(-1),
    "usage-text": _completion_tokens("12"),
    "usage-float": _completion_tokens(1.5),
    "usage-huge": _completion_tokens(10**18),
    "usage-bool": _completion_tokens(True),
    "usage-object": _completion_tokens({"n": 5}),
    "usage-dear": _completion_tokens(10**8),
    "usage-input-negative": lambda script: whole(script, usage=lambda honest: honest | {"prompt_tokens": -1}),
    "usage-cached-negative": lambda script: whole(
        script, usage=lambda honest: honest | {"prompt_tokens_details": {"cached_tokens": -5}}
    ),
    "usage-empty": lambda script: whole(script, usage=lambda honest: {}),
    "usage-list": lambda script: whole(script, usage=lambda honest: [1, 2]),
    "usage-string": lambda script: whole(script, usage=lambda honest: "many"),
    "usage-partial": lambda script: whole(script, usage=lambda honest: {"prompt_tokens": honest["prompt_tokens"]}),
    "usage-triple": _usage_triple,
    "usage-everywhere": lambda script: whole(script, everywhere=True),
    "usage-unasked": lambda script: whole(script, unasked=True),
    "silent": _silent,
    "headers-only": _headers_only,
    "hang": _hang,
    "reset": _ended_at_once(reset=True),
    "close": _ended_at_once(reset=False),
    "cut": _ended_at_half(reset=True),
    "cut-fin": _ended_at_half(reset=False),
    "short": _short,
    "bad-chunk": _bad_chunk,
    "bad-json": _bad_json,
    "html": _html,
    "no-content": _no_content,
    "redirect": _redirect,
    "stream-error": _stream_error,
    "gzip": _gzip,
    "bad-gzip": _bad_gzip,
    "huge-header": lambda script: whole(script, **{"x-huge": "h" * 65536}),
    "drip": _drip,
    "echo": _echo,
    "echo-error": _echo_error,
}


async def answer(script: Script) -> web.StreamResponse:
    """The answer that the model's name asks for."""
    name = script.call.model.removeprefix("mock-")
    if name.startswith("status-"):
        return await status(script, int(name.removeprefix("status-")))
    return await BEHAVIOURS.get(name, whole)(script)
