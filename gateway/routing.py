"""Where a call for a model may go, by the providers and aliases of the configuration. Pure; the proxy routes by it.

Which place comes first at a moment (weights, providers that rest) is the proxy's own matter: what a call holds covers all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gateway.patterns import matches

MOST_CANDIDATES = 16
DEMO_MODEL = "demo"
"""The model that is the demo provider's own; every other name it only stands in for."""
DEMO_KIND = "demo"


class Serves(Protocol):
    """What routing needs to know of a provider."""

    @property
    def kind(self) -> str:
        """`demo`, or another kind."""
        ...

    @property
    def patterns(self) -> Sequence[str]:
        """The names of models that go there, `*` as a wildcard."""
        ...


@dataclass(frozen=True, slots=True)
class NamedProvider:
    """A provider without its connections, for who only wants to know the way."""

    name: str
    kind: str
    patterns: tuple[str, ...]


P = TypeVar("P", bound=Serves)


def places(model: str, providers: Sequence[P], aliases: Mapping[str, Sequence[tuple[P, str]]]) -> list[tuple[P, str]]:
    """The provider and the model's name there of each place, in the order of the configuration; empty: nobody serves it.

    providers: in the order of the configuration. aliases: names of the gateway's own, with their places.
    """
    if model in aliases:
        return list(aliases[model])
    serving = [provider for provider in providers if matches(model, provider.patterns)]
    real = [provider for provider in serving if provider.kind != DEMO_KIND]
    if real and model == DEMO_MODEL:  # the demo model itself never goes to a server that costs money
        real = [provider for provider in serving if provider.kind == DEMO_KIND] or real
    return [(provider, model) for provider in real or serving]
