"""Who called, and over what, when proxies stand in front: `X-Forwarded-For` and `X-Forwarded-Proto` of trusted ones.

Anybody can write these headers, so they count only when the connection comes from a trusted proxy, and of the list of hops only
the part that trusted proxies wrote: from the right to the first address that is none of them. `Forwarded` (RFC 7239) and other
headers of that kind are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import web

MOST_HOPS = 32
"""Hops that are looked at; a longer chain of trusted proxies is nobody's."""
_LONGEST = 64

Network = IPv4Network | IPv6Network


class TrustedProxies:
    """Reads what trusted proxies say.

    networks: where they are.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self._is_trusted = lru_cache(4096)(self._look_up)

    def caller(self, request: web.BaseRequest) -> tuple[str, str]:
        """The caller's address, empty when not known, and the scheme that the caller used: `http` or `https`."""
        peer, scheme = request.remote or "", request.scheme
        address = _plain(peer)
        if not self._is_trusted(address):
            return peer, scheme
        headers = request.headers
        if "X-Forwarded-Proto" in headers:
            told = headers.getall("X-Forwarded-Proto")[-1].rpartition(",")[2].strip().lower()
            if told in {"http", "https"}:
                scheme = told
        if "X-Forwarded-For" in headers:
            address = self._walk(address, headers.getall("X-Forwarded-For"))
        return address, scheme

    def trusts(self, address: str) -> bool:
        """Whether a connection from this address is one of a trusted proxy."""
        return self._is_trusted(_plain(address))

    def _walk(self, nearest: str, lines: Sequence[str]) -> str:
        """The first hop from the right that is no trusted proxy; what is no address ends the walk at the hop that wrote it."""
        for count, entry in enumerate(_from_the_right(lines)):
            hop = _plain(entry) if count < MOST_HOPS else ""
            if not hop:
                return nearest
            nearest = hop
            if not self._is_trusted(hop):
                return hop
        return nearest

    def _look_up(self, address: str) -> bool:
        if not address:
            return False
        parsed = ip_address(address)
        return any(parsed in network for network in self._networks if network.version == parsed.version)


def _from_the_right(lines: Sequence[str]) -> Iterator[str]:
    """The entries of all lines, the last one first; empty ones are none."""
    for line in reversed(lines):
        rest = line
        while rest:
            rest, _, entry = rest.rpartition(",")
            if entry := entry.strip():
                yield entry


def _plain(text: str) -> str:
    """An address without brackets and port, a mapped one as the IPv4 address that it is; empty for what is none."""
    return _read(text) if len(text) <= _LONGEST else ""


@lru_cache(4096)
def _read(text: str) -> str:
    if text.startswith("["):
        inner, _, port = text[1:].partition("]")
        text = inner if not port or (port[0] == ":" and port[1:].isdigit()) else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        text = host if port.isdigit() else ""
    try:
        address: IPv4Address | IPv6Address = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
