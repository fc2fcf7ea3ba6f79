"""What a setting may hold: the kinds of values, each with a sentence that says what it takes.

Every kind reads what TOML gives and what an environment variable can say, which is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import PlainValidator

from gateway.patterns import parse_models

_DECIMAL: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?([eE]-[0-9]{1,2})?")
_HOST: Final = re.compile(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+|\*")
_PROVIDER: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class KeyFault(ValueError):
    """A fault of one key, found where the whole table is looked at."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


def whole(least: int, most: int) -> Callable[[Any], int]:
    """Reads a whole number."""

    def read(value: Any) -> int:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(text, str) and re.fullmatch(r"-?[0-9]{1,18}", text) and least <= int(text) <= most:
            return int(text)
        raise ValueError(f"it takes a whole number from {least} to {most}")

    return read


def number(least: float, most: float, unit: str) -> Callable[[Any], float]:
    """Reads a number, which may have a fraction."""

    def read(value: Any) -> float:
        try:
            read_as = (
                float(value) if isinstance(value, (str, int, float, Decimal)) and not isinstance(value, bool) else math.nan
            )
        except (ValueError, OverflowError):
            read_as = math.nan
        if not least <= read_as <= most:
            raise ValueError(f"it takes a number of {unit} from {least:g} to {most:g}")
        return read_as

    return read


def choice(*values: str) -> Callable[[Any], str]:
    """Reads one of some words, upper and lower case alike."""

    def read(value: Any) -> str:
        if isinstance(value, str) and value.lower() in values:
            return value.lower()
        raise ValueError(f"it takes {' or '.join(values)}")

    return read


def status(*values: int) -> Callable[[Any], int]:
    """Reads one of some HTTP statuses."""

    def read(value: Any) -> int:
        if not isinstance(value, bool) and str(value) in {str(known) for known in values}:
            return int(value)
        raise ValueError(f"it takes {' or '.join(str(known) for known in values)}")

    return read


def yes_or_no(value: Any) -> bool:
    """Reads true or false."""
    if isinstance(value, bool):
        return value
    raise ValueError("it takes true or false")


def text(value: Any, *, most: int = 256) -> str:
    """Reads printable text."""
    if isinstance(value, str) and 0 < len(value) <= most and value.isprintable():
        return value
    raise ValueError(f"it takes printable text of 1 to {most} characters")


def path(value: Any) -> Path:
    """Reads the path of a file or folder; `~` is the home folder."""
    if isinstance(value, (str, Path)) and str(value) and "\0" not in str(value):
        return Path(value).expanduser()
    raise ValueError("it takes a path")


def host(value: Any) -> str:
    """Reads a name or an address to listen on."""
    if isinstance(value, str) and _HOST.fullmatch(value if ":" not in value or value[0] == "[" else f"[{value}]"):
        return value
    raise ValueError("it takes a host such as 127.0.0.1 or 0.0.0.0")


def listen(value: Any) -> str:
    """Reads `host:port`, where port 0 takes a free one."""
    if isinstance(value, str):
        name, _, port = value.rpartition(":")
        if _HOST.fullmatch(name) and re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= 65_535:
            return value
    raise ValueError("it takes host:port such as 127.0.0.1:50051, an IPv6 address in brackets")


def address(value: Any) -> str:
    """Reads where to dial: `host:port`, or `dns:///host:port` for all addresses of a name."""
    if isinstance(value, str):
        try:
            return "dns:///" * value.startswith("dns:///") + listen(value.removeprefix("dns:///"))
        except ValueError:
            pass
    raise ValueError("it takes host:port such as auth:50051, or dns:///host:port for all addresses that a name has")


def database_url(value: Any) -> str:
    """Reads the URL of a database."""
    if isinstance(value, str) and re.match(r"(sqlite:///.|postgresql://.)", value) and value.isprintable():
        return value
    raise ValueError("it takes sqlite:///<path> or postgresql://<user>@<host>/<database>")


def provider_name(value: Any) -> str:
    """Reads the name of a provider."""
    if isinstance(value, str) and _PROVIDER.fullmatch(value) and value != "gateway":
        return value
    raise ValueError("it takes lower-case letters, digits and . _ - (at most 64); `gateway` is taken")


def rate(value: Any) -> Decimal:
    """Reads a price, exactly: a decimal text, or a TOML number by its text."""
    written = str(value) if isinstance(value, (int, float, Decimal, str)) and not isinstance(value, bool) else ""
    if _DECIMAL.fullmatch(written):
        return Decimal(written)
    raise ValueError('it takes a decimal of 0 or more in text, such as "2.50"')


def patterns(value: Any) -> tuple[str, ...]:
    """Reads the names of models, `*` as a wildcard."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value):
        return parse_models(value)
    raise ValueError('it takes a list of names, such as ["gpt-*", "o*"]')


def api_keys(value: Any) -> tuple[str, ...]:
    """Reads a pool of keys, or rather where they are. What they are is never told."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(key, str) for key in value):
        raise ValueError('it takes a list, such as ["env:OPENAI_API_KEY"]')
    for place, key in enumerate(value):
        kind, _, rest = key.partition(":")
        good = (
            _VARIABLE.fullmatch(rest) is not None
            if kind == "env"
            else bool(rest) and "\0" not in rest
            if kind == "file"
            else key.isascii() and key.isprintable() and bool(key) and " " not in key
        )
        if not good:
            raise ValueError(f"key {place + 1}: it takes env:NAME, file:PATH, or a key in printable ASCII without spaces")
    if len(set(value)) != len(value):
        raise ValueError("one key stands there twice")
    return tuple(value)


Rate = Annotated[Decimal, PlainValidator(rate)]
Patterns = Annotated[tuple[str, ...], PlainValidator(patterns)]
Text = Annotated[str, PlainValidator(text)]
ProviderName = Annotated[str, PlainValidator(provider_name)]
Flag = Annotated[bool, PlainValidator(yes_or_no)]
