"""The entry point of `gateway`. Service commands become their service before anything of the command line is loaded."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

SERVICES = ("auth", "admin", "proxy", "demo")


def command(service: str) -> list[str]:
    """The command line that runs a service. `-P`: no folder named `services` of wherever we are is taken for ours."""
    return [sys.executable, "-P", "-m", f"services.{service}"]


def become(service: str) -> NoReturn:
    """Replaces this process by a service."""
    os.execv(sys.executable, command(service))  # noqa: S606 - no shell on purpose


def main() -> int:
    """Runs the command line of this process; gives its exit code."""
    arguments = sys.argv[1:]
    if len(arguments) == 1 and arguments[0] in SERVICES:
        become(arguments[0])
    from clients.cli.app import run  # noqa: PLC0415 - a service that is started by its command need not load the command line

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
