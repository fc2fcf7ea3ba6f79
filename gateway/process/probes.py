"""The internal HTTP port of auth and admin: `/healthz`, `/readyz`, `/metrics`. It needs no identity, so it tells no secrets."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder

from gateway.process import logs

_TIMEOUT: Final = 5.0  # seconds for a request to come in, so that no probe holds a thread
_PLAIN: Final = "text/plain; charset=utf-8"

_log = logs.get_logger(__name__)


class Probes:
    """A running port, or none at all. Use it as a context."""

    def __init__(self, server: _Server | None) -> None:
        self._server = server
        self.port: int | None = server.server_address[1] if server is not None else None
        """Where it listens; None: it is off."""

    def close(self) -> None:
        """Stops answering."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def start_probes(address: str | None, ready: Callable[[], bool], *, registry: CollectorRegistry = REGISTRY) -> Probes:
    """Answers probes in a thread of its own.

    address: `host:port`, port 0 takes a free one; None: off. ready: whether the service can do its work.
    registry: the metrics. Raises OSError, which says where, when it cannot listen.
    """
    if address is None:
        return Probes(None)
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = _Server(("" if host == "*" else host, int(port)), family, ready, registry)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address} for probes: {error.strerror or error}") from None
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="probes", daemon=True).start()
    return Probes(server)


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True  # a port in TIME_WAIT is free; one that listens is not

    def __init__(
        self, address: tuple[str, int], family: socket.AddressFamily, ready: Callable[[], bool], registry: CollectorRegistry
    ) -> None:
        self.address_family = family
        self.ready = ready
        self.registry = registry
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A prober that hangs up is nobody's concern; anything else is a fault of ours."""
        if isinstance(sys.exception(), OSError):
            _log.debug("probe failed", exc_info=True)
        else:
            _log.error("probe failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT
    server: _Server

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/healthz":
                self._answer(200, _PLAIN, b"ok\n")
            case "/readyz":
                if self._ready():
                    self._answer(200, _PLAIN, b"ready\n")
                else:
                    self._answer(503, _PLAIN, b"not ready\n")
            case "/metrics":
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, kind, encode(self.server.registry))
            case _:
                self._answer(404, _PLAIN, b"not found: /healthz, /readyz and /metrics are here\n")

    do_HEAD = do_GET

    def _ready(self) -> bool:
        try:
            return bool(self.server.ready())
        except Exception as error:
            _log.warning("not ready", exc_info=error)
            return False

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """What stands in `Server:` where an error is answered: nothing that tells the software."""
        return "gateway"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a probe would bury the rest."""
