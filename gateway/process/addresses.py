"""Where the gateway may connect: no provider's URL leads it to the machine's own inside.

A URL may name a loopback or private address if it is written plainly. Whatever else leads inside, such as a name that resolves
to a private address, needs `allow_address = true`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA_ADDRESSES: Final = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
_METADATA_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_HINT: Final = "set allow_address = true if you mean it"


class AddressRefused(ValueError):
    """The gateway does not connect there; the message says why and what would do."""


def check_base_url(url: str, allow_address: bool = False) -> None:
    """Checks a provider's `base_url` as it is written. Raises AddressRefused.

    allow_address: lets link-local, metadata, unspecified and disguised addresses pass too. The URL must be whole in any case:
    http or https, a host, no user, no query, no fragment.
    """
    if not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        raise AddressRefused("it must be plain ASCII without spaces and backslashes (write other letters as punycode)")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressRefused(f"it is no URL: {error}") from None
    if parts.scheme not in {"http", "https"}:
        raise AddressRefused("it must start with https:// or http://")
    if "@" in parts.netloc:
        raise AddressRefused("it must not hold a user or password: keys belong into api_keys")
    if "?" in url or "#" in url:
        raise AddressRefused("it must end with a path, without ? and #")
    if not host:
        raise AddressRefused("it names no host")
    if port == 0:
        raise AddressRefused("its port must be 1 to 65535")
    if parts.netloc.startswith("[") and _written(host) is None:
        raise AddressRefused(f"[{host}] is no IPv6 address")
    if not allow_address:
        _check_host(host)


def check_resolved(host: str, address: str | Address, allow_address: bool = False) -> None:
    """Checks the address that a host stands for at the moment of connecting. Raises AddressRefused.

    host: as it stands in the `base_url`. address: what it resolved to, or itself.
    A loopback or private address is good only if the host is that address, or is `localhost`.
    """
    if allow_address:
        return
    resolved = ipaddress.ip_address(address) if isinstance(address, str) else address
    inner = embedded(resolved) or resolved
    if kind := _never(inner) or _never(resolved):
        raise AddressRefused(f"{host} is {kind} ({resolved}): {_HINT}")
    if inner.is_global:
        return
    written = _written(host)
    if written == resolved or (written is None and _is_localhost(host) and inner.is_loopback):
        return
    raise AddressRefused(f"{host} resolves to the private address {resolved}: write the address itself, or {_HINT}")


def embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address carries: mapped, compatible, 6to4, Teredo or NAT64; None: none."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _NAT64) or (address in _COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return None


def _check_host(host: str) -> None:
    written = _written(host)
    if written is None:
        _check_name(host)
        return
    if str(written) != host.lower() or embedded(written) is not None:
        raise AddressRefused(f"{host} is an address in disguise, of {embedded(written) or written}: {_HINT}")
    if kind := _never(written):
        raise AddressRefused(f"{host} is {kind}: {_HINT}")


def _check_name(host: str) -> None:
    labels = host.rstrip(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # What ends in a number is read as an address by resolvers: 2130706433, 0x7f.1 and 0177.0.0.1 are all 127.0.0.1.
        raise AddressRefused(f"{host} is an address in disguise: write it as four decimal numbers, or {_HINT}")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise AddressRefused(f"{host} is no name of a host")
    if host.rstrip(".").lower() in _METADATA_NAMES:
        raise AddressRefused(f"{host} is a cloud's metadata service: {_HINT}")


def _written(host: str) -> Address | None:
    """The address that a host is; None for a name. A zone, such as `fe80::1%eth0`, is part of it."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _never(address: Address) -> str:
    """What kind of address this is, of those that no plain writing makes good; empty: none."""
    if address in _METADATA_ADDRESSES:
        return "a cloud's metadata service"
    if address.is_link_local:
        return "a link-local address"
    if address.is_unspecified or (isinstance(address, ipaddress.IPv4Address) and address in _THIS_NETWORK):
        return "an unspecified address"
    if address.is_multicast:
        return "a multicast address"
    if isinstance(address, ipaddress.IPv4Address) and address.is_reserved:
        return "a reserved address"
    return ""


def _is_localhost(host: str) -> bool:
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")
