"""A service that meters its own work: it summarizes texts, and each caller pays with a client token of the gateway.

Run it as examples/README.md says. It asks the gateway before it works and reports what it used afterwards; the work itself is a
stand-in that keeps the first words of each sentence and counts words as tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator

from aiohttp import web

from gateway.client import AsyncGateway, ModelTerms
from gateway.client.aiohttp_guard import call_of, guard

MODEL = os.environ.get("SUMMARY_MODEL", "demo")  # a name in the gateway's price book: what a token costs
MOST_WORDS = 200
GATEWAY = web.AppKey("gateway", AsyncGateway)


async def terms(request: web.Request) -> ModelTerms | None:
    """What a request may cost at the most: its text, and the longest summary."""
    if request.path != "/summaries":
        return None
    return {
        "model": MODEL,
        "endpoint": request.path,
        "input_text": await request.text(),
        "max_output_tokens": MOST_WORDS,
        "client_ip": request.remote or "",
    }


async def summarize(request: web.Request) -> web.Response:
    """Answers with the summary and what it cost."""
    call = call_of(request)
    text = await request.text()
    limit = min(MOST_WORDS, call.max_output_tokens or MOST_WORDS)
    words = [word for sentence in re.split(r"(?<=[.!?])\s+", text) for word in sentence.split()[:5]][:limit]
    used = {"input": len(text.split()), "output": len(words)}
    call.usage(usage=used, status=200)
    return web.json_response({"summary": " ".join(words), "usage": used, "cost": float(call.grant.cost(used))})


async def healthz(request: web.Request) -> web.Response:
    """Says that the process lives; costs nothing."""
    return web.Response(text="ok\n")


def make_app() -> web.Application:
    """The service, by GATEWAY_AUTH_ADDRESS and GATEWAY_IDENTITY_DIR."""

    async def gateway_of(app: web.Application) -> AsyncIterator[None]:
        async with app[GATEWAY]:  # closing waits until everything is reported
            yield

    gateway = AsyncGateway.from_env()
    app = web.Application(middlewares=[guard(gateway, terms)])
    app[GATEWAY] = gateway
    app.cleanup_ctx.append(gateway_of)
    app.add_routes([web.post("/summaries", summarize), web.get("/healthz", healthz)])
    return app


async def _started() -> web.Application:
    return make_app()  # on the running loop, which the gateway's channel belongs to


if __name__ == "__main__":
    web.run_app(_started(), host="127.0.0.1", port=int(os.environ.get("PORT", "8085")), print=None)
