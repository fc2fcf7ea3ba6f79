"""The settings of the HTTP ports, and every way in which they can be wrong."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from tests.gateway.conftest import Faults, Load


def test_the_edge_speaks_plain_http_on_one_port_and_trusts_nobody_unless_told(load: Load) -> None:
    settings = load()
    assert (settings.admin_http, settings.tls_cert, settings.tls_key) == (None, None, None)
    assert (settings.trusted_proxies, settings.cors_origins, settings.upstream_total_timeout) == ((), (), 3_600.0)


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.0.0.5", ["10.0.0.5/32"]),
        (" 10.0.0.0/16 , ::1,, fd00::/8 ", ["10.0.0.0/16", "::1/128", "fd00::/8"]),
        ("[2001:db8::1]", ["2001:db8::1/128"]),
        ("::ffff:10.1.0.0/112, ::ffff:10.0.0.5", ["10.1.0.0/16", "10.0.0.5/32"]),
        ("10.0.0.5,10.0.0.5/32", ["10.0.0.5/32"]),
    ],
)
def test_trusted_proxies_are_addresses_and_networks(load: Load, text: str, networks: list[str]) -> None:
    assert load(TRUSTED_PROXIES=text).trusted_proxies == tuple(map(ip_network, networks))


def test_lists_may_stand_in_the_file(load: Load) -> None:
    settings = load('trusted_proxies = ["10.0.0.0/8"]\ncors_origins = ["https://a.example", "http://localhost:3000"]\n')
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"),)
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("TRUSTED_PROXIES", "*", "is no address and no network"),
        ("TRUSTED_PROXIES", "nginx", "is no address and no network"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        ("TRUSTED_PROXIES", "10.0.0.5, 0.0.0.0/0", "0.0.0.0/0 is everybody"),
        ("TRUSTED_PROXIES", "::/0", "::/0 is everybody"),
        ("TRUSTED_PROXIES", "::ffff:0.0.0.0/96", "is everybody"),
        ("CORS_ORIGINS", "*", "is no origin"),
        ("CORS_ORIGINS", "null", "is no origin"),
        ("CORS_ORIGINS", "https://a.example/", "is no origin"),
        ("CORS_ORIGINS", "https://A.example", "is no origin"),
        ("CORS_ORIGINS", "https://a.example:443", "is no origin"),
        ("ADMIN_HTTP", "8081", "it takes host:port such as 127.0.0.1:8081, or off"),
        ("ADMIN_HTTP", "nowhere", "it takes host:port such as 127.0.0.1:8081, or off"),
        ("ADMIN_HTTP", "127.0.0.1:8080", "http_port is at 127.0.0.1:8080 too"),
        ("ADMIN_HTTP", "0.0.0.0:50051", "give each its own port"),
        ("TLS_CERT", "/c.pem", "tls_key is not set: TLS takes both"),
        ("TLS_KEY", "/k.pem", "tls_cert is not set: TLS takes both"),
        ("UPSTREAM_TOTAL_TIMEOUT", "0", "it takes a number of seconds from 0.1 to 86400"),
    ],
)
def test_what_is_wrong_is_told_with_its_reason(faults: Faults, variable: str, text: str, reason: str) -> None:
    told: list[Any] = faults(**{variable: text})
    assert any(reason in fault and variable.lower() in fault.lower() for fault in told), told
