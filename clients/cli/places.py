"""Where the services are, as a person on this machine writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.process.settings import Settings

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read here, not bound


def place(listen: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`."""
    host, _, port = listen.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def reachable(listen: str) -> tuple[str, int]:
    """Host and port at which this machine reaches what listens there: loopback for "all addresses"."""
    host, port = place(listen)
    return _EVERYWHERE.get(host, host), port


def edge(settings: Settings) -> str:
    """Where the proxy listens for applications."""
    return f"{settings.http_host}:{settings.http_port}"


def base_url(settings: Settings) -> str:
    """The URL of the edge for somebody on this machine, without a slash at its end."""
    host, port = reachable(edge(settings))
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def own_name() -> str:
    """How the `gateway` command of this installation is called from here: its name if that is on the PATH, else its path."""
    import shutil  # noqa: PLC0415 - a health check uses this module, too, and is to be cheap
    import sys  # noqa: PLC0415 - same
    from pathlib import Path  # noqa: PLC0415 - same

    ours = Path(sys.executable).parent / "gateway"
    found = shutil.which("gateway")
    if found and Path(found).resolve() == ours.resolve():
        return "gateway"
    return str(ours.relative_to(Path.cwd())) if ours.is_relative_to(Path.cwd()) else str(ours)
