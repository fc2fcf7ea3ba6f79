"""Where the proxies send calls, as the one that beat last said, so that a dry run of the operator goes the same way."""

from __future__ import annotations

from typing import Final

from google.protobuf import json_format

from gateway.errors import FailedPrecondition, ModelNotFound
from gateway.routing import MOST_CANDIDATES, NamedProvider, places
from gateway.storage.database import Database
from gateway.storage.routing import noted_routing
from gateway.stubs.auth.v1 import auth_pb2 as pb

_MOST_BYTES: Final = 256 << 10  # a beat must pass, however long a configuration is


def routing_text(beat: pb.BeatRequest) -> str:
    """The routing of a beat as the database keeps it; empty where there is none, or more than is kept."""
    if not beat.HasField("routing") or beat.routing.ByteSize() > _MOST_BYTES:
        return ""
    return json_format.MessageToJson(beat.routing, indent=None)


def candidates(db: Database, model: str) -> list[pb.Candidate]:
    """Where the proxies send a call for a model.

    Raises FailedPrecondition where no proxy has said it yet, ModelNotFound where nobody serves the model.
    """
    text = noted_routing(db)
    if not text:
        raise FailedPrecondition("no proxy has told auth yet where it sends calls: start one, and ask again in a few seconds")
    told = json_format.Parse(text, pb.Routing(), ignore_unknown_fields=True)
    providers = {one.name: NamedProvider(one.name, one.kind, tuple(one.patterns)) for one in told.providers}
    aliases = {
        alias.name: [(providers[place.provider], place.model) for place in alias.places if place.provider in providers]
        for alias in told.aliases
    }
    found = places(model, list(providers.values()), aliases)
    if not found:
        raise ModelNotFound(f"no provider of this gateway serves the model {model!r}")
    return [pb.Candidate(provider=provider.name, model=name) for provider, name in found[:MOST_CANDIDATES]]
