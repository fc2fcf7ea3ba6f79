"""Where settings come from: the environment, files that hold one secret, and `gateway.toml`. Values are only collected here."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

PREFIX: Final = "GATEWAY_"
ENVIRONMENT: Final = "environment"

_MAX_BYTES: Final = 1024 * 1024
# What Kubernetes puts into every container for a service called `gateway` or `gateway-…`.
_SERVICE_LINK: Final = re.compile(
    r"GATEWAY_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_LINK_PORT: Final = re.compile(r"GATEWAY_(?:[A-Z0-9_]+_)?PORT")
_LINK_VALUE: Final = re.compile(r"(?:tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Value:
    """A value as it was found, and where."""

    value: Any
    source: str
    key: str


@dataclass(slots=True)
class Found:
    """What was found, by the name of the setting, and what was wrong with it."""

    values: dict[str, Value] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def fault(self, source: str, key: str, reason: str) -> None:
        """Notes a fault: file or environment, key, reason."""
        self.faults.append(f"{source}: {key}: {reason}")


def collect(environ: Mapping[str, str], names: Iterable[str], secrets: Iterable[str], tables: Iterable[str]) -> Found:
    """Every value that is set, the environment's before the file's.

    names: all settings; secrets: those that may also stand in a file of their own; tables: those that are lists of tables.
    Empty variables are as good as none.
    """
    names, secrets, tables = tuple(names), frozenset(secrets), frozenset(tables)
    found = Found()
    variables = _environment(environ, names, secrets, tables, found)
    given = variables.get("config")
    config = Path(given.value).expanduser() if given else Path("gateway.toml")
    for name, value in _file(config, given is not None, names, secrets, found).items():
        variables.setdefault(name, value)
    found.values = variables
    return found


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint at the name that was probably meant."""
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _environment(
    environ: Mapping[str, str], names: tuple[str, ...], secrets: frozenset[str], tables: frozenset[str], found: Found
) -> dict[str, Value]:
    known = {PREFIX + name.upper(): name for name in names}
    files = {f"{PREFIX}{name.upper()}_FILE": name for name in secrets}
    values: dict[str, Value] = {}
    for variable in sorted(environ):
        content = environ[variable]
        if not variable.startswith(PREFIX) or not content.strip() or _is_service_link(variable, content):
            continue
        if variable in known:
            name = known[variable]
            if name in values:
                found.fault(ENVIRONMENT, variable, f"{values[name].key} is set too: set one of them")
                continue
            value = content if name in secrets else content.strip()
            values[name] = Value(_table(value, variable, found) if name in tables else value, ENVIRONMENT, variable)
        elif variable in files:
            name = files[variable]
            if name in values:
                found.fault(ENVIRONMENT, variable, f"{values[name].key} is set too: set one of them")
                continue
            secret = _secret(Path(content.strip()), ENVIRONMENT, variable, found)
            if secret is not None:
                values[name] = Value(secret, ENVIRONMENT, variable)
        else:
            found.fault(ENVIRONMENT, variable, f"there is no such setting{suggestion(variable, [*known, *files])}")
    return {name: value for name, value in values.items() if value.value is not None}


def _is_service_link(variable: str, content: str) -> bool:
    if _SERVICE_LINK.fullmatch(variable):
        return True
    # GATEWAY_HTTP_PORT is ours, unless it was made for a service `gateway-http`; then it holds a URL.
    return _LINK_PORT.fullmatch(variable) is not None and _LINK_VALUE.match(content) is not None


def _table(content: str, variable: str, found: Found) -> Any:
    try:
        value = json.loads(content, parse_float=Decimal)
    except ValueError as error:
        found.fault(ENVIRONMENT, variable, f"it takes a JSON array of objects: {error}")
        return None
    return value


def _secret(path: Path, source: str, key: str, found: Found) -> str | None:
    try:
        content = _text(path.expanduser()).rstrip("\r\n")
    except (OSError, ValueError) as error:
        found.fault(source, key, f"{path}: {_why(error)}")
        return None
    if not content.strip():
        found.fault(source, key, f"{path}: the file is empty")
        return None
    return content


def _file(config: Path, required: bool, names: tuple[str, ...], secrets: frozenset[str], found: Found) -> dict[str, Value]:
    source = str(config)
    try:
        document = tomllib.loads(_text(config), parse_float=Decimal)
    except FileNotFoundError:
        if required:
            found.fault(ENVIRONMENT, f"{PREFIX}CONFIG", f"there is no file {config}")
        return {}
    except tomllib.TOMLDecodeError as error:
        found.faults.append(f"{source}: {error}")
        return {}
    except (OSError, ValueError) as error:
        found.faults.append(f"{source}: {_why(error)}")
        return {}
    known = [name for name in names if name != "config"]
    files = {f"{name}_file": name for name in secrets}
    values: dict[str, Value] = {}
    for key, value in document.items():
        name = files.get(key, key)
        if name not in known:
            found.fault(source, key, f"there is no such setting{suggestion(key, [*known, *files])}")
        elif name in values:
            found.fault(source, key, f"{values[name].key} is set too: set one of them")
        elif key in files and not isinstance(value, str):
            found.fault(source, key, "it takes the path of a file")
        else:
            read = _secret(Path(value), source, key, found) if key in files else value
            if read is not None:
                values[name] = Value(read, source, key)
    return values


def _text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise ValueError("the file is larger than 1 MiB")
    return raw.decode("utf-8-sig")


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "the file is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
