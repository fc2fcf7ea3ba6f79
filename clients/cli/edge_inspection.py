"""The inspections of `gateway check` that are about the HTTP ports: their certificate, and whom they believe."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from clients.cli.inspection import FAULT, OK, WARNING, Finding
from gateway.process.settings import Settings
from gateway.process.tls import CertificateFault, load_certificate

_SUBJECT = "TLS"
_WIDEST = {4: 8, 6: 16}
"""Bits of the widest networks that are somebody's own."""


def certificate(settings: Settings) -> Iterator[Finding]:
    """Whether the certificate of the HTTP ports can be used, whom it is for, and for how long."""
    if settings.tls_cert is None or settings.tls_key is None:
        yield Finding(OK, _SUBJECT, "off: the HTTP ports speak plain http (GATEWAY_TLS_CERT, GATEWAY_TLS_KEY)")
        return
    try:
        loaded = load_certificate(settings.tls_cert, settings.tls_key)
    except CertificateFault as fault:
        yield Finding(FAULT, _SUBJECT, str(fault))
        return
    names = ", ".join(loaded.names) or "nobody: it has no subjectAltName, so callers refuse it"
    if concern := loaded.concern():
        yield Finding(WARNING, _SUBJECT, f"{settings.tls_cert} is for {names}; {concern}")
    else:
        days = (loaded.not_after - datetime.now(UTC)).days
        yield Finding(OK if loaded.names else WARNING, _SUBJECT, f"{settings.tls_cert} is for {names}; good for {days} days")


def trusted_proxies(settings: Settings) -> Iterator[Finding]:
    """Warns of networks that are too wide to be somebody's own."""
    for network in settings.trusted_proxies:
        if network.prefixlen < _WIDEST[network.version]:
            text = f"{network} is wide: whoever is in it can pass for any address. Name your proxies' own networks"
            yield Finding(WARNING, "trusted proxies", text)
