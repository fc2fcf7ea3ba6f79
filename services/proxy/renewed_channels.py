"""The proxy's channels to auth and admin: made anew when its certificate is renewed, while calls on the old ones end."""

from __future__ import annotations

import asyncio
from functools import partial

from gateway.process.tasks import survives
from gateway.rpc.channel import aio_channel
from gateway.rpc.renewal import LOOK_EVERY, Renewal
from services.proxy.admin_http import AdminRoutes
from services.proxy.replicas import Replicas

_GRACE = 15.0
"""Seconds for RPCs of admin that have begun: a login may wait for its turn."""


class RenewedChannels:
    """Looks at the certificate each second, and connects anew when it has changed.

    renewal: of the proxy's identity. admin_address: where admin is.
    """

    def __init__(self, renewal: Renewal, *, replicas: Replicas, admin: AdminRoutes, admin_address: str) -> None:
        self._renewal = renewal
        self._replicas = replicas
        self._admin = admin
        self._admin_address = admin_address
        self._watching: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begins to look; needs the running loop."""
        self._watching = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """Ends the connection to admin. Those to auth are closed by whoever closes the replicas."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._admin.channel.close()

    @survives
    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            renewed = await asyncio.to_thread(self._renewal.look)
            if renewed is None:
                continue
            self._replicas.redial(partial(aio_channel, identity=renewed, service="auth"))
            before = self._admin.channel
            self._admin.use(aio_channel(self._admin_address, renewed, "admin"))
            task = asyncio.create_task(before.close(_GRACE))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
