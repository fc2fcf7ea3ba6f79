"""Logs: one JSON object a line on standard error, or coloured text where a person looks on.

Whatever an event holds, it stays one valid line. Values whose name says that they are secret are never written.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.contextvars import bind_contextvars, merge_contextvars, unbind_contextvars

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

MAX_VALUE: Final = 2_000
MAX_STACK: Final = 16_000
"""The longest text that an event keeps, and the longest stack trace; the rest is cut."""

_SECRET_WORDS: Final = ("password", "secret", "authorization", "cookie", "api_key", "apikey", "session_token", "private_key")
_SECRET_NAMES: Final = frozenset({"token", "key", "plain", "credential", "credentials", "bearer"})
_HIDDEN: Final = "[hidden]"
_MAX_DEPTH: Final = 6

Logger = structlog.typing.FilteringBoundLogger

_debugging = False


def configure(level: Level, format: Format | None, service: str, *, stream: TextIO | None = None) -> None:
    """Sets up the logs of this process, those of libraries included.

    level: the least that is written. format: None takes `console` on a terminal, else `json`. service: stands in every line.
    stream: where the lines go; None: standard error.
    """
    global _debugging  # noqa: PLW0603 - the logs of a process are one, as structlog's own configuration is
    target = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    _debugging = number <= logging.DEBUG
    common: list[structlog.typing.Processor] = [
        merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service(service),
    ]
    ending: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, _clean]
    if (format or ("console" if target.isatty() else "json")) == "json":
        ending.append(structlog.processors.JSONRenderer(sort_keys=False, ensure_ascii=True, default=_text))
    else:
        # Plain, as the handsome stack traces show the values of variables, and so secrets.
        plain = structlog.dev.plain_traceback
        ending.append(structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=plain))
    _configure_structlog([*common, *ending], number, stream)
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries tell at `info` and `debug` what they do on the wire, credentials included.
    root.setLevel(max(number, logging.WARNING))


def debugging() -> bool:
    """Whether `debug` lines are written, for the places where making one would cost too much."""
    return _debugging


def get_logger(name: str) -> Logger:
    """The logger of a module; `name` stands in its lines."""
    logger: Logger = structlog.get_logger(module=name)
    return logger


def bind(**values: object) -> None:
    """Puts facts, such as the request's id, into every further line of this call."""
    bind_contextvars(**values)


def unbind(*names: str) -> None:
    """Takes facts out again."""
    unbind_contextvars(*names)


def _service(name: str) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", name)
        return event

    return add


def _clean(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {
        _text(key): (
            _safe(value, 0, MAX_STACK)
            if key in {"exception", "stack"}
            else _HIDDEN
            if _is_secret(_text(key)) and value
            else _safe(value, 0, MAX_VALUE)
        )
        for key, value in event.items()
    }


def _safe(value: Any, depth: int, limit: int) -> Any:
    """A value that JSON can hold, cut where it is too long or too deep."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return (
            value if -(2**63) <= value < 2**64 else _cut(str(value), limit) if value.bit_length() < 10_000 else "[huge number]"
        )
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # NaN and infinity are no JSON
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        return {
            _text(key): _HIDDEN if _is_secret(_text(key)) and item else _safe(item, depth + 1, limit)
            for key, item in list(value.items())[:100]
        }
    if isinstance(value, (list, tuple, set, frozenset)) and depth < _MAX_DEPTH:
        return [_safe(item, depth + 1, limit) for item in list(value)[:100]]
    return _cut(_text(value), limit)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    try:
        return str(value).encode("utf-8", "replace").decode("utf-8")
    except Exception as error:  # whatever a foreign __str__ raises, the line is written
        return f"[unprintable {type(value).__name__}: {type(error).__name__}]"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _is_secret(name: str) -> bool:
    lowered = name.lower()
    return lowered in _SECRET_NAMES or any(word in lowered for word in _SECRET_WORDS)


def _configure_structlog(processors: list[structlog.typing.Processor], number: int, stream: TextIO | None) -> None:
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: structlog.WriteLogger(stream if stream is not None else sys.stderr),
        cache_logger_on_first_use=False,
    )


# Before `configure`, and in programs that never call it: warnings only, as JSON.
_configure_structlog(
    [structlog.processors.add_log_level, structlog.processors.format_exc_info, _clean, structlog.processors.JSONRenderer()],
    logging.WARNING,
    None,
)
