"""A scripted provider on loopback, in OpenAI's dialect, that writes down what reached it and what it did.

In a test: `async with Provider() as provider:` gives `provider.base_url` and `provider.calls`. As a process:
`python -m tests.fakes.provider --port 9100 --ledger FILE`. How it answers: `behaviours.py`; what it writes down: `call.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from aiohttp import web

from tests.fakes.behaviours import Script, answer
from tests.fakes.call import Call, to_line

_DIRECTIVE = re.compile(r"\b([a-z]+):([\w.-]+)")
_MODELS = {"object": "list", "data": [{"id": "mock", "object": "model", "created": 1, "owned_by": "mock"}]}


def _prompt(body: dict) -> str:
    """All text of the messages."""
    texts = []
    for message in body.get("messages") or []:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            found = [part.get("text", "") for part in content if isinstance(part, dict)]
            texts += [text for text in found if isinstance(text, str)]
    return " ".join(texts)


class Provider:
    """The server. Only what needs a path of its own is here; the answers are in `behaviours.py`."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, ledger: Path | None = None) -> None:
        self.host, self.port = host, port
        self.calls: list[Call] = []
        self._ledger = ledger
        self._file: TextIO | None = None
        self._one_ended = asyncio.Event()
        self._numbers = itertools.count(1)
        self._runner = web.ServerRunner(web.Server(self._handle, handler_cancellation=True), shutdown_timeout=0.1)

    @property
    def base_url(self) -> str:
        """Where the dialect's paths start, with `/v1`."""
        return f"http://{self.host}:{self.port}/v1"

    def named(self, nonce: str) -> list[Call]:
        """The calls whose prompt carried this nonce."""
        return [call for call in self.calls if call.nonce == nonce]

    async def ended(self, count: int) -> None:
        """Waits until this many calls have ended, in whatever way."""
        while sum(1 for call in self.calls if call.ended_at) < count:
            await self._one_ended.wait()

    async def start(self) -> None:
        if self._ledger is not None:
            self._file = self._ledger.open("a", buffering=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()
        if self._file is not None:
            self._file.close()

    async def __aenter__(self) -> Provider:
        await self.start()
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        call = Call(
            number=next(self._numbers),
            method=request.method,
            path=request.raw_path,
            headers=[(name, value) for name, value in request.headers.items()],
            body=raw.decode(errors="replace"),
            accepted_at=time.time(),
        )
        if request.method == "GET" and call.path == "/v1/models":
            return web.json_response(_MODELS)
        body = self._read(call)
        self.calls.append(call)
        self._write(call)
        script = Script(request, call, body)
        try:
            if call.path == "/v1/chat/completions" and call.method == "POST":
                return await self._finish(script, await answer(script))
            call.status = 404
            return web.json_response({"error": {"message": "no such route", "type": "invalid_request_error"}}, status=404)
        except ConnectionError:
            call.saw_abort = not call.broken
            return web.Response()  # to nobody: the connection is gone
        except asyncio.CancelledError:
            call.saw_abort = not call.broken
            raise
        finally:
            call.ended_at = time.time()
            self._write(call)
            self._one_ended.set()
            self._one_ended = asyncio.Event()

    async def _finish(self, script: Script, response: web.StreamResponse) -> web.StreamResponse:
        """Sends the rest, so that a caller who leaves at the last byte is seen too."""
        if not script.call.broken:
            await response.prepare(script.request)
            await response.write_eof()
        return response

    def _read(self, call: Call) -> dict:
        try:
            body = json.loads(call.body)
        except ValueError:
            return {}
        if not isinstance(body, dict):
            return {}
        call.model, call.stream = str(body.get("model", "")), body.get("stream") is True
        call.directives = dict(_DIRECTIVE.findall(_prompt(body)))
        call.nonce = call.directives.get("nonce", "")
        return body

    def _write(self, call: Call) -> None:
        if self._file is not None and not self._file.closed:
            self._file.write(to_line(call))


async def _serve(host: str, port: int, ledger: Path | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Provider(host=host, port=port, ledger=ledger) as provider:
        print(provider.base_url, flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A scripted provider in OpenAI's dialect.")
    parser.add_argument("--host", default="127.0.0.1", help="where it listens: 0.0.0.0 for containers too")
    parser.add_argument("--port", type=int, default=0, help="0: any free one; its base URL is printed")
    parser.add_argument("--ledger", type=Path, help="a file for one line of JSON when a call is accepted and one when it ends")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.host, arguments.port, arguments.ledger))


if __name__ == "__main__":
    main()
