"""Which providers may serve a model, in which order."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from gateway.process.settings_tables import ModelSettings, ProviderSettings
from gateway.routing import DEMO_KIND, DEMO_MODEL, MOST_CANDIDATES, places
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy.providers import openai
from services.proxy.providers.base import Alias, Provider, Target
from services.proxy.providers.keys import resolve_keys

_REMEMBERED = 4096


class Registry:
    """The providers and the aliases.

    providers: in the order of the configuration. choose: a number from 0 up to, not including, the one given; for the weights.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        aliases: Sequence[Alias] = (),
        *,
        choose: Callable[[float], float] = lambda total: random.random() * total,  # noqa: S311 - spreads load
    ) -> None:
        self.providers = tuple(providers)
        self._aliases = {alias.name: alias for alias in aliases}
        self._places = {alias.name: [(target.provider, target.model) for target, _ in alias.targets] for alias in aliases}
        self._choose = choose
        self._served: dict[str, tuple[Target, ...]] = {}

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names of the gateway's own."""
        return tuple(self._aliases)

    def route(self, model: str) -> list[Target]:
        """Where a call for this model may go, the first choice first; empty: nobody serves it."""
        targets = list(self._serving(model))
        if (alias := self._aliases.get(model)) is not None:
            targets = self._drawn(alias, targets)
        if len(targets) > 1:
            targets.sort(key=lambda target: target.provider.rests)  # stable: those that rest come last
        return targets[:MOST_CANDIDATES]

    def _serving(self, model: str) -> tuple[Target, ...]:
        known = self._served.get(model)
        if known is None:
            known = tuple(Target(provider, name) for provider, name in places(model, self.providers, self._places))
            if len(self._served) >= _REMEMBERED:
                self._served.clear()
            self._served[model] = known
        return known

    def _drawn(self, alias: Alias, targets: list[Target]) -> list[Target]:
        """The alias's targets with the first drawn by weight, the others behind it in their order."""
        left = self._choose(float(sum(weight for _, weight in alias.targets)))
        for index, (_, weight) in enumerate(alias.targets):
            left -= weight
            if left < 0:
                return [targets[index], *targets[:index], *targets[index + 1 :]]
        return targets

    def models(self) -> list[pb.ProviderModels]:
        """Each provider's patterns, for the list of models, without what the demo provider only stands in for."""
        real = {pattern for provider in self.providers if provider.kind != DEMO_KIND for pattern in provider.patterns}
        return [
            pb.ProviderModels(
                provider=provider.name,
                patterns=[p for p in provider.patterns if provider.kind != DEMO_KIND or p == DEMO_MODEL or p not in real],
            )
            for provider in self.providers
        ]


def allowed_hosts(providers: Sequence[ProviderSettings]) -> dict[str, bool]:
    """For each provider's host whether it may be at any address."""
    hosts: dict[str, bool] = {}
    for provider in providers:
        host = urlsplit(provider.base_url).hostname or ""
        hosts[host] = hosts.get(host, True) and provider.allow_address
    return hosts


def build_registry(
    providers: Sequence[ProviderSettings],
    models: Sequence[ModelSettings],
    *,
    environ: Mapping[str, str],
    clock: Callable[[], float],
) -> Registry:
    """The registry from the settings. Raises KeyMissing when a key that they name is not there."""
    built = {
        settings.name: openai.build(settings, resolve_keys(settings.name, settings.api_keys, environ), clock=clock)
        for settings in providers
    }
    aliases = [
        Alias(model.name, [(Target(built[target.provider], target.model), target.weight) for target in model.targets])
        for model in models
    ]
    return Registry(list(built.values()), aliases)
