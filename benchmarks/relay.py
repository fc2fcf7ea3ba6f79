"""The yardstick: a plain aiohttp relay that checks nothing, books nothing and passes each chunk on as it comes."""

from __future__ import annotations

import sys

import aiohttp
import uvloop
from aiohttp import web

UPSTREAM = web.AppKey("upstream", str)
SESSION = web.AppKey("session", aiohttp.ClientSession)


async def relay(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    headers = {"Authorization": "Bearer sk-upstream", "Content-Type": "application/json"}
    async with request.app[SESSION].post(request.app[UPSTREAM] + request.path, data=body, headers=headers) as upstream:
        if upstream.content_type != "text/event-stream":
            return web.Response(status=upstream.status, body=await upstream.read(), content_type=upstream.content_type)
        response = web.StreamResponse(status=upstream.status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for piece in upstream.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response


async def make_app() -> web.Application:
    app = web.Application()
    app[UPSTREAM] = sys.argv[2]

    async def session(app: web.Application):  # noqa: ANN202 - an async generator that aiohttp runs
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as app[SESSION]:
            yield

    app.cleanup_ctx.append(session)
    app.router.add_post("/v1/chat/completions", relay)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]), backlog=1024, access_log=None, print=None)
