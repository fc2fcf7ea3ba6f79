"""The service commands: each becomes `python -m services.<name>`, which reads the settings itself."""

from __future__ import annotations

from clients.cli.__main__ import become


def auth() -> None:
    """Run the auth service: the ledger, over gRPC. Becomes `python -m services.auth`."""
    become("auth")


def proxy() -> None:
    """Run the proxy: the HTTP edge. Becomes `python -m services.proxy`."""
    become("proxy")


def demo() -> None:
    """Run the demo provider: an OpenAI-dialect server that needs no key. Becomes `python -m services.demo`."""
    become("demo")
