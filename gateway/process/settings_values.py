"""What a setting may hold: the kinds of values, each with a sentence that says what it takes.

Every kind reads what TOML gives and what an environment variable can say, which is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import PlainValidator

from gateway.patterns import parse_models

_DECIMAL: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?([eE]-[0-9]{1,2})?")
_HOST: Final = re.compile(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+|\*")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
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


def days_kept(value: Any) -> int:
    """Reads for how many days something is kept: longer than the week for which the ids of calls are final; 0: for good."""
    try:
        days = whole(0, 36_500)(value)
    except ValueError:
        days = -1
    if days == 0 or days >= 8:
        return days
    raise ValueError("it takes 0, for good, or a whole number of days from 8 to 36500")


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


def listen_or_off(value: Any) -> str:
    """Reads `host:port`, or `off`."""
    if isinstance(value, str):
        if value.lower() == "off":
            return "off"
        try:
            return listen(value)
        except ValueError:
            pass
    raise ValueError("it takes host:port such as 127.0.0.1:8081, or off")


def networks(value: Any) -> tuple[IPv4Network | IPv6Network, ...]:
    """Reads addresses and networks, by commas or as a list. An IPv4 address that is written as an IPv6 one is an IPv4 address.

    "Everybody" is refused: whoever is believed can pass for any address, so these are to be the operator's own proxies.
    """
    found = [_network(entry) for entry in _entries(value, "addresses and networks such as 10.0.0.5, 10.1.0.0/16")]
    return tuple(dict.fromkeys(found))


def _network(entry: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(entry.strip("[]") if "/" not in entry else entry)
    except ValueError as error:
        if str(error).endswith("has host bits set"):
            raise ValueError(
                f"{entry} names one address and a network at once: did you mean {ip_network(entry, False)}?"
            ) from None
        raise ValueError(f"{entry!r:.60} is no address and no network: names and * cannot be told from strangers") from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None and network.prefixlen >= 96:
        network = IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    if network.prefixlen == 0:
        raise ValueError(f"{entry} is everybody, who could then pass for any address: name the networks of your proxies")
    return network


def origins(value: Any) -> tuple[str, ...]:
    """Reads origins as browsers write them, by commas or as a list."""
    found = _entries(value, "origins such as https://app.example.com, http://localhost:3000")
    for entry in found:
        if not _ORIGIN.fullmatch(entry) or re.search(r"^(?:https://.*:443|http://.*:80)$", entry):
            raise ValueError(
                f"{entry!r:.80} is no origin as a browser sends it: scheme://host, lower case, a port only if it is not the "
                "scheme's own, no path, no *"
            )
    return tuple(dict.fromkeys(found))


def _entries(value: Any, takes: str) -> list[str]:
    """The entries of a list, or of a text with commas."""
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"it takes {takes}")
    return [entry.strip() for entry in entries if entry.strip()]


def address(value: Any) -> str:
    """Reads where to dial: `host:port`, `dns:///host:port`, or several addresses of machines with commas between them."""
    if isinstance(value, str):
        try:
            if "," not in value:
                return "dns:///" * value.startswith("dns:///") + listen(value.removeprefix("dns:///"))
            versions = {ip_address(listen(place).rpartition(":")[0].strip("[]")).version for place in value.split(",")}
            if len(versions) == 1:
                return value
        except ValueError:
            pass
    raise ValueError(
        "it takes host:port such as auth:50051, dns:///host:port for all addresses that a name has,"
        " or addresses of one kind with commas between them, such as 10.0.0.7:50051,10.0.0.8:50051"
    )


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
