"""What a channel needs of an identity, and the name that it insists on. Needs no library that reads certificates."""

from __future__ import annotations

from typing import Final, Protocol

IDENTITY_PREFIX: Final = "gateway://identity/"


class Keys(Protocol):
    """A certificate with its key and the authority that it trusts, each as PEM."""

    @property
    def cert(self) -> bytes:
        """The certificate."""
        ...

    @property
    def key(self) -> bytes:
        """Its private key."""
        ...

    @property
    def ca(self) -> bytes:
        """The authority."""
        ...


def dns_name(name: str) -> str:
    """The DNS name in the certificate of an identity, which clients insist on."""
    return f"{name}.gateway.internal"
