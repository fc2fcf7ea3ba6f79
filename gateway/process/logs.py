"""Logs: one JSON object a line on standard error, or text for people where a terminal is.

Whatever an event holds, it stays one valid line. Secrets are not for logs: whoever logs leaves them out. Should one slip in,
what `log_values.py` knows as a secret, by its name or its shape, is hidden.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO
from weakref import WeakSet

import structlog
from structlog.contextvars import bind_contextvars, merge_contextvars, unbind_contextvars

from gateway.process.log_sink import Sink, Stream, hold_standard_descriptors
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
    sink = _sink(stream)
    number = logging.getLevelNamesMapping()[level.upper()]
    _debugging = number <= logging.DEBUG
    common: list[structlog.typing.Processor] = [
        merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service(service),
    ]
    ending: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    if is_json(format, stream):
        ending.append(_json)
    else:
        # Plain, as the handsome stack traces show the values of variables, and so secrets.
        plain = structlog.dev.plain_traceback
        ending += [_cleaned, structlog.dev.ConsoleRenderer(colors=_is_terminal(stream), exception_formatter=plain), _hidden]
    _configure_structlog([*common, *ending], number, sink)
    handler = _Handler(sink)
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
    return not _is_terminal(stream)


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


def _configure_structlog(processors: list[structlog.typing.Processor], number: int, sink: Sink | Stream) -> None:
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Lines(sink),
        cache_logger_on_first_use=False,
    )
    for logger in list(_loggers):
        logger.configured()


class _Lines:
    """Writes lines, each in one piece. A line that cannot be written fails nothing."""

    def __init__(self, sink: Sink | Stream) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        """Writes one line."""
        self._sink.write(f"{line}\n")

    debug = info = warning = error = exception = critical = msg


class _Handler(logging.Handler):
    """The same for the lines of libraries."""

    def __init__(self, sink: Sink | Stream) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        try:
            line = self.format(record)
        except Exception:  # whatever a library logs, it goes on
            return
        self._sink.write(f"{line}\n")


def _sink(stream: TextIO | None) -> Sink | Stream:
    """Where lines go: to a thread where standard error is the process's own, at once where somebody has set a stream."""
    if stream is not None:
        return Stream(lambda: stream)
    if sys.stderr is not None and sys.stderr is not sys.__stderr__:
        return Stream(lambda: sys.stderr)
    hold_standard_descriptors()
    return Sink(2, _lost)


def _lost(lines: int) -> str:
    """The line that says how many were lost, once lines can be written again."""
    now = datetime.now(UTC).isoformat()
    event = {"event": "log_lines_lost", "lines": lines, "level": "warning", "timestamp": now, "module": __name__}
    return to_json(event) + "\n"


def _is_terminal(stream: TextIO | None) -> bool:
    target = stream if stream is not None else sys.stderr
    try:
        return target is not None and target.isatty()
    except ValueError:  # it is closed
        return False


# Before `configure`, and in programs that never call it: warnings only, as JSON.
_configure_structlog(
    [structlog.processors.add_log_level, structlog.processors.format_exc_info, _json],
    logging.WARNING,
    Stream(lambda: sys.stderr),
)
