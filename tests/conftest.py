"""What holds for every test: only loopback is reachable, and no setting of the machine leaks in."""

from __future__ import annotations

import io
import ipaddress
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from gateway.process import logs

pytest_plugins = ["tests.support.databases"]


def _is_loopback(address: Any) -> bool:
    """Whether a socket address is on this machine: a path of a local socket, or a loopback IP."""
    if not isinstance(address, tuple):
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return address[0] == "localhost"


@pytest.fixture(scope="session", autouse=True)
def only_loopback() -> Iterator[None]:
    """Fails whatever tries to connect to another machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if not _is_loopback(address):
            self.close()
            raise AssertionError(f"a test wants to connect to {address!r}: only loopback is allowed")
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if not _is_loopback(address):
            self.close()
            raise AssertionError(f"a test wants to connect to {address!r}: only loopback is allowed")
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_settings_of_the_machine() -> Iterator[None]:
    """Takes the gateway's settings, the providers' keys and proxies out of the environment, also for subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("GATEWAY_TEST_"):
                continue
            if name.startswith(("GATEWAY_", "OPENAI_", "ANTHROPIC_")) or name.lower().endswith("_proxy"):
                patch.delenv(name)
        yield


LogLines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """Undoes what a test did to the logs of this process."""
    root = logging.getLogger()
    before, handlers, level = structlog.get_config(), root.handlers[:], root.level
    yield
    logs.configure("warning", "json", "test")
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def log_lines(logs_as_before: None) -> LogLines:
    """What has been logged so far, each line read as JSON."""
    stream = io.StringIO()
    logs.configure("debug", "json", "test", stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
