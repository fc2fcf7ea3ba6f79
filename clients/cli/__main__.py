"""The entry point of `gateway`. Service commands become their service before anything of the command line is loaded."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import NoReturn

from clients.cli.probe import ask_by_environment

SERVICES = ("auth", "admin", "proxy", "demo")

_OF_THE_EXTRA = ("cyclopts", "peewee", "structlog")  # that these are missing tells an installation without `services`


def command(service: str) -> list[str]:
    """The command line that runs a service. `-P`: no folder named `services` of wherever we are is taken for ours."""
    return [sys.executable, "-P", "-m", f"services.{service}"]


def become(service: str) -> NoReturn:
    """Replaces this process by a service."""
    os.execv(sys.executable, command(service))  # noqa: S606 - no shell on purpose


def main() -> int:
    """Runs the command line of this process; gives its exit code."""
    arguments = sys.argv[1:]
    if any(find_spec(name) is None for name in _OF_THE_EXTRA):
        print("gateway: only the client is installed here: pip install 'gateway-zero[services]'", file=sys.stderr)
        return 2
    if len(arguments) == 1 and arguments[0] in SERVICES:
        become(arguments[0])
    if len(arguments) == 2 and arguments[0] == "health" and arguments[1] in SERVICES:
        answer = ask_by_environment(arguments[1], os.environ)
        if answer is not None:
            print(f"{answer.service}\t{'ready' if answer.ready else 'not ready'}\t{answer.detail}", flush=True)
            return 0 if answer.ready else 1
    from clients.cli.app import run  # noqa: PLC0415 - a service that is started by its command need not load the command line

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
