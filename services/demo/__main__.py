"""Starts the demo provider: `python -m services.demo`."""

from __future__ import annotations

import asyncio
import os
import sys

from aiohttp import web

from gateway.process import logs
from gateway.process.lifecycle import install_signals, stop_when_told
from gateway.process.settings import Settings, SettingsError, load_settings
from gateway.process.stderr import cannot_start, catch_stray
from services.demo.app import Demo

_CUT = 0.1  # seconds that calls have to notice that they are cut

_log = logs.get_logger(__name__)


def main() -> int:
    """Serves until it is told to stop; gives the exit code: 0 when every call came to its end."""
    try:
        settings = load_settings(os.environ)
    except SettingsError as fault:
        return cannot_start("demo", fault)
    logs.configure(settings.log_level, settings.log_format, "demo")
    catch_stray()
    try:
        return 0 if asyncio.run(_serve(settings)) else 1
    except OSError as fault:
        _log.error("cannot_listen", address=settings.demo_listen, reason=fault.strerror or str(fault))
        return 1


async def _serve(settings: Settings) -> bool:
    """Listens, and returns when it was told to stop and did; whether no call was cut."""
    signals = install_signals(asyncio.get_running_loop())
    demo = Demo(pace=settings.demo_pace)
    # Cancellation: a caller who hangs up has no more tokens generated, as with a real provider.
    runner = web.AppRunner(demo.app(), handler_cancellation=True, access_log=None, shutdown_timeout=_CUT)
    await runner.setup()
    try:
        host, _, port = settings.demo_listen.rpartition(":")
        site = web.TCPSite(runner, host.removeprefix("[").removesuffix("]"), int(port), backlog=1024)
        await site.start()
        _log.info("listening", address=settings.demo_listen, pace=settings.demo_pace)
        return await stop_when_told(
            signals,
            lame_duck=settings.lame_duck,
            drain=settings.drain,
            not_ready=demo.stop_taking,
            close=site.stop,
            idle=demo.idle,
        )
    finally:
        await runner.cleanup()
        signals.close()


if __name__ == "__main__":
    sys.exit(main())
