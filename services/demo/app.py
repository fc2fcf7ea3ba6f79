"""The demo provider's HTTP: routes, streaming at a pace, errors in the OpenAI shape."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from gateway.process.logs import get_logger
from services.demo import completion
from services.demo.completion import BadRequest, ChatRequest, Choice

_BODY_LIMIT = 64 * 1024 * 1024  # bytes; the gateway's own limit is below it
_UNPACED_BREATH = 64  # tokens after which a stream without a pace lets others run

_log = get_logger(__name__)


class Demo:
    """One demo provider. Counts the calls in flight, and says no more often `ready` once it is told to stop.

    pace: tokens a second that each call generates; 0: as fast as it can.
    """

    def __init__(self, *, pace: float) -> None:
        self._pace = pace
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False

    def app(self) -> web.Application:
        """The application with all routes."""
        app = web.Application(middlewares=[self._count, _errors], client_max_size=_BODY_LIMIT)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{model:.+}", self.model)
        app.router.add_get("/healthz", self.healthz)
        app.router.add_get("/readyz", self.readyz)
        return app

    def stop_taking(self) -> None:
        """From now on `/readyz` answers 503 and every answer closes its connection. Calls are still taken."""
        self._stopping = True

    async def idle(self) -> None:
        """Returns as soon as no call is in flight."""
        await self._idle.wait()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answers a chat request, plain or as a stream."""
        call = completion.parse(await _json_object(request))
        choices = completion.answer(call)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": call.model}
        if call.stream:
            return await self._stream(request, call, choices, head)
        sent = 0
        try:
            async for _ in self._generate(choices):
                sent += 1
        finally:
            _report(call, sent, whole=sent == _total(choices))
        return web.json_response(
            {
                **head,
                "object": "chat.completion",
                "choices": [
                    {
                        "index": index,
                        "message": {"role": "assistant", "content": choice.text, "refusal": None},
                        "logprobs": None,
                        "finish_reason": choice.finish_reason,
                    }
                    for index, choice in enumerate(choices)
                ],
                "usage": completion.usage(call, sent),
            }
        )

    async def models(self, _: web.Request) -> web.Response:
        """The one model that is nobody else's."""
        return web.json_response({"object": "list", "data": [_model(completion.MODEL)]})

    async def model(self, request: web.Request) -> web.Response:
        """That model, or 404."""
        name = request.match_info["model"]
        if name != completion.MODEL:
            return _error(404, f"The model '{name}' does not exist", code="model_not_found", param="model")
        return web.json_response(_model(name))

    async def healthz(self, _: web.Request) -> web.Response:
        """Alive."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """Ready until it is told to stop."""
        return web.json_response({"status": "stopping"}, status=503) if self._stopping else web.json_response({"status": "ok"})

    async def _stream(
        self, request: web.Request, call: ChatRequest, choices: list[Choice], head: dict[str, Any]
    ) -> web.StreamResponse:
        """One event a token, an event that ends each choice, the usage where it was asked for, `[DONE]`."""
        head = {**head, "object": "chat.completion.chunk"}
        rest = {"usage": None} if call.include_usage else {}
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
        if self._stopping:
            response.force_close()
        await response.prepare(request)

        async def send(index: int, delta: dict[str, str], finish_reason: str | None = None) -> None:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            await response.write(_event({**head, "choices": [choice], **rest}))

        sent = 0
        try:
            for index in range(len(choices)):
                await send(index, {"role": "assistant", "content": ""})
            async for index, token in self._generate(choices):
                sent += 1
                await send(index, {"content": token})
            for index, choice in enumerate(choices):
                await send(index, {}, choice.finish_reason)
            if call.include_usage:
                await response.write(_event({**head, "choices": [], "usage": completion.usage(call, sent)}))
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        except ConnectionError:
            pass  # the caller hung up: nothing more is generated, and nobody is left to be told
        finally:
            _report(call, sent, whole=sent == _total(choices))
        return response

    async def _generate(self, choices: list[Choice]) -> AsyncIterator[tuple[int, str]]:
        """The tokens of all choices as they come into being, side by side, each with its choice's index."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        for position in range(max(len(choice.tokens) for choice in choices)):
            if self._pace > 0:
                # By the time since the start, so that late wake-ups do not add up.
                await asyncio.sleep(max(0.0, started + (position + 1) / self._pace - loop.time()))
            elif position % _UNPACED_BREATH == 0:
                await asyncio.sleep(0)
            for index, choice in enumerate(choices):
                if position < len(choice.tokens):
                    yield index, choice.tokens[position]

    @web.middleware
    async def _count(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Counts calls in flight, and closes connections once it is told to stop."""
        self._open += 1
        self._idle.clear()
        try:
            response = await handler(request)
            if self._stopping:
                response.force_close()
            return response
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()


@web.middleware
async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Tells every fault in the OpenAI shape."""
    try:
        return await handler(request)
    except BadRequest as fault:
        return _error(400, str(fault), param=fault.param)
    except web.HTTPNotFound:
        return _error(404, f"Unknown request URL: {request.method} {request.path}", code="unknown_url")
    except web.HTTPMethodNotAllowed as fault:
        answer = _error(405, f"{request.method} is not allowed on {request.path}", code="method_not_allowed")
        answer.headers["allow"] = fault.headers["allow"]
        return answer
    except web.HTTPRequestEntityTooLarge:
        return _error(413, f"The request is larger than {_BODY_LIMIT} bytes", code="request_too_large")


async def _json_object(request: web.Request) -> dict[str, Any]:
    """The body. Raises BadRequest when it is no JSON object."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise BadRequest("We could not parse the JSON body of your request") from None
    if not isinstance(body, dict):
        raise BadRequest("The body of the request is a JSON object")
    return body


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def _error(status: int, message: str, *, code: str | None = None, param: str | None = None) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return web.json_response({"error": error}, status=status)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "gateway-zero"}


def _total(choices: list[Choice]) -> int:
    return sum(len(choice.tokens) for choice in choices)


def _report(call: ChatRequest, sent: int, *, whole: bool) -> None:
    """One log line a call, with what a provider's bill would name."""
    _log.info(
        "completion",
        model=call.model,
        stream=call.stream,
        input_tokens=call.prompt_tokens,
        output_tokens=sent,
        whole=whole,
    )
