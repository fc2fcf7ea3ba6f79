"""What a service would write to standard error beside its log: made into lines of the log, so that each line is one event."""

from __future__ import annotations

import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any, Final

from gateway.process import logs

CANNOT_START: Final = 1
"""The exit code of a service that could not start."""

_log = logs.get_logger(__name__)


def catch_stray() -> None:
    """Has the log tell what Python itself would print: uncaught exceptions of any thread, failing destructors, warnings.

    For the `main` of a service, after `logs.configure`.
    """
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def cannot_start(service: str, error: Exception) -> int:
    """Tells in one line why a service does not start, and gives its exit code.

    For people `auth: <why>`; where the log is JSON, one of its events. It needs no `logs.configure`: settings may be wrong.
    """
    if logs.is_json(os.environ.get("GATEWAY_LOG_FORMAT")):
        logs.configure("info", "json", service)
        _log.error("cannot start", fault=str(error))
    else:
        print(f"{service}: {error}", file=sys.stderr, flush=True)
    return CANNOT_START


def tell_waiting(what_for: str) -> None:
    """Tells what a service waits for before it can start: without it, a wrong password would look like a silent service."""
    _log.warning("waiting for the database", reason=what_for)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _log.error("uncaught", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: Any) -> None:
    if not issubclass(args.exc_type, SystemExit):
        told = (args.exc_type, args.exc_value, args.exc_traceback)
        _log.error("uncaught", thread=args.thread.name if args.thread else "", exc_info=told)


def _unraisable(args: Any) -> None:
    told = (args.exc_type, args.exc_value, args.exc_traceback)
    _log.error("unraisable", where=args.err_msg or "", exc_info=told)
