"""The service commands: each becomes `python -m services.<name>`, which reads the settings itself."""

from __future__ import annotations

from clients.cli.__main__ import become


def auth() -> None:
    """Run the auth service: the ledger, over gRPC. Becomes `python -m services.auth`.

    Example: GATEWAY_AUTH_LISTEN=0.0.0.0:50051 gateway auth
    """
    become("auth")


def proxy() -> None:
    """Run the proxy: the HTTP edge. Becomes `python -m services.proxy`.

    Example: GATEWAY_HTTP_PORT=8081 gateway proxy
    """
    become("proxy")


def demo() -> None:
    """Run the demo provider: an OpenAI-dialect server that needs no key. Becomes `python -m services.demo`.

    Example: GATEWAY_DEMO_PACE=20 gateway demo
    """
    become("demo")
