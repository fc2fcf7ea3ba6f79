"""Where this proxy sends calls, as it tells auth, so that `gateway explain` goes the same way."""

from __future__ import annotations

from gateway.process.settings import Settings
from gateway.stubs.auth.v1 import auth_pb2 as pb


def routing_of(settings: Settings) -> pb.Routing:
    """The providers and aliases of the settings. No key and no address is in them."""
    return pb.Routing(
        providers=[
            pb.RoutedProvider(name=provider.name, kind=provider.kind, patterns=provider.models)
            for provider in settings.providers
        ],
        aliases=[
            pb.RoutedAlias(
                name=alias.name,
                places=[pb.Candidate(provider=target.provider, model=target.model) for target in alias.targets],
            )
            for alias in settings.models
        ],
    )
