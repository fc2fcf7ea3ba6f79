"""Kinds `openai` and `openai-compatible`: one dialect, two names for the output limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import SecretStr

from gateway.process.settings_tables import ProviderSettings
from services.proxy.providers.base import Provider

# OpenAI's reasoning models take the newer name only; servers that imitate it know the older one.
_LIMIT_PARAMETER = {"openai": "max_completion_tokens", "openai-compatible": "max_tokens", "demo": "max_tokens"}


def build(settings: ProviderSettings, secrets: Sequence[SecretStr], *, clock: Callable[[], float]) -> Provider:
    """A provider from its settings. secrets: its keys. clock: monotonic seconds."""
    return Provider(
        name=settings.name,
        kind=settings.kind,
        base_url=settings.base_url,
        patterns=settings.models,
        secrets=secrets,
        limit_parameter=_LIMIT_PARAMETER[settings.kind],
        clock=clock,
    )
