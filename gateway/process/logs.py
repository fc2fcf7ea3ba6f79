"""Logs: one JSON object a line on standard error, or text for people where a terminal is.

Whatever an event holds, it stays one valid line. Secrets are not for logs: whoever logs leaves them out. Should one slip in,
what `log_values.py` knows as a secret, by its name or its shape, is hidden.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO
from weakref import WeakSet

import structlog
from structlog.contextvars import bind_contextvars, merge_contextvars, unbind_contextvars

from gateway.process.log_values import clean, hide, to_json

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

_METHODS: Final = ("debug", "info", "warning", "error", "exception")


class Logger:
    """The logger of a module. Its methods take the event and, by keyword, its facts.

    What is below the level costs next to nothing.
    """

    debug: Callable[..., Any]
    info: Callable[..., Any]
    warning: Callable[..., Any]
    error: Callable[..., Any]
    exception: Callable[..., Any]

    def __init__(self, name: str) -> None:
        self._name = name
        self.configured()
        _loggers.add(self)

    def configured(self) -> None:
        """Takes over what `configure` has set up."""
        # Bound once, as structlog's own lazy loggers would put themselves together anew for every line.
        bound = structlog.get_logger(module=self._name).bind()
        for method in _METHODS:
            setattr(self, method, getattr(bound, method))


_loggers: WeakSet[Logger] = WeakSet()
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
    ending: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    if is_json(format, target):
        ending.append(_json)
    else:
        # Plain, as the handsome stack traces show the values of variables, and so secrets.
        plain = structlog.dev.plain_traceback
        ending += [_cleaned, structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=plain), _hidden]
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


def is_json(format: str | None, stream: TextIO | None = None) -> bool:
    """Whether lines are JSON. format: as it is set; what is no format counts as unset. stream: None: standard error."""
    if format in {"json", "console"}:
        return format == "json"
    return not (stream if stream is not None else sys.stderr).isatty()


def get_logger(name: str) -> Logger:
    """The logger of a module; `name` stands in its lines. Good before and after `configure`."""
    return Logger(name)


def debugging() -> bool:
    """Whether `debug` lines are written, for the places where gathering their facts would cost too much."""
    return _debugging


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


def _json(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    return to_json(event)


def _cleaned(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return clean(event)


def _hidden(_logger: Any, _method: str, event: Any) -> str:
    return hide(str(event))


def _configure_structlog(processors: list[structlog.typing.Processor], number: int, stream: TextIO | None) -> None:
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Lines(stream),
        cache_logger_on_first_use=False,
    )
    for logger in list(_loggers):
        logger.configured()


class _Lines:
    """Writes lines, each in one piece."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        """Writes one line to what is standard error at this moment, unless it has a stream of its own."""
        stream = self._stream if self._stream is not None else sys.stderr
        stream.write(f"{line}\n")
        stream.flush()

    debug = info = warning = error = exception = critical = msg


# Before `configure`, and in programs that never call it: warnings only, as JSON.
_configure_structlog([structlog.processors.add_log_level, structlog.processors.format_exc_info, _json], logging.WARNING, None)
