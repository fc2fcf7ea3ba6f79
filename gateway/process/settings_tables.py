"""The tables of `gateway.toml`: providers, prices and aliases."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from gateway.process import settings_values as values
from gateway.process.addresses import AddressRefused, check_base_url
from gateway.process.settings_values import Flag, KeyFault, Patterns, ProviderName, Rate, Text

ProviderKind = Literal["openai", "openai-compatible", "demo"]

OPENAI_MODELS: Final = ("gpt-*", "o*", "chatgpt-*", "text-embedding-*")
DEMO_MODELS: Final = ("demo", "gpt-*", "claude-*", "gemini-*")

_TABLE: Final = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


def _openai_url(data: dict[str, Any]) -> str:
    return "https://api.openai.com/v1" if data.get("kind") == "openai" else ""


def _price_provider(data: dict[str, Any]) -> str:
    kind = str(data.get("kind", ""))
    return kind if kind in {"openai", "demo"} else str(data.get("name", ""))


class ProviderSettings(BaseModel):
    """One `[[providers]]`: an AI provider, or a server that speaks like one."""

    model_config = _TABLE

    name: ProviderName
    """Its name, unique: in the records, in aliases, in the price book."""
    kind: Annotated[ProviderKind, PlainValidator(values.choice("openai", "openai-compatible", "demo"))]
    """`openai`, `openai-compatible` or `demo`."""
    allow_address: Flag = False
    """Lets `base_url` lead to link-local, metadata and disguised addresses, and its name to private ones."""
    base_url: Annotated[str, PlainValidator(lambda value: values.text(value, most=2_000))] = Field(default_factory=_openai_url)
    """Where it is, up to and with `/v1`. Default for kind openai: its own."""
    api_keys: Annotated[tuple[str, ...], PlainValidator(values.api_keys)] = Field(default=(), repr=False)
    """A pool of keys: `env:NAME`, `file:PATH`, or the key itself. Kind openai needs one."""
    models: Patterns
    """The names of models that go there, `*` as a wildcard."""
    price_provider: ProviderName = Field(default_factory=_price_provider)
    """Whose rates of the price book hold. Default: openai for kind openai, demo for kind demo, else its own name."""

    @model_validator(mode="after")
    def _check(self) -> ProviderSettings:
        if not self.base_url:
            raise KeyFault("base_url", f"it is missing: kind {self.kind} needs it, such as http://127.0.0.1:11434/v1")
        try:
            check_base_url(self.base_url, self.allow_address)
        except AddressRefused as error:
            raise KeyFault("base_url", str(error)) from None
        if self.kind == "openai" and not self.api_keys:
            raise KeyFault("api_keys", 'it is missing: kind openai needs a key, such as ["env:OPENAI_API_KEY"]')
        return self

    @property
    def literal_keys(self) -> int:
        """How many keys stand in the settings themselves instead of in a variable or a file."""
        return sum(not key.startswith(("env:", "file:")) for key in self.api_keys)


class PriceSettings(BaseModel):
    """One `[[prices]]`: rates that go over the built-in table. Per million tokens unless the name says otherwise."""

    model_config = _TABLE

    model: Text
    """The model's name at its provider."""
    provider: ProviderName | None = None
    """The provider whose model it is; none: whoever has a model of this name."""
    input: Rate | None = None
    """Tokens read."""
    output: Rate | None = None
    """Tokens written."""
    cached_input: Rate | None = None
    """Tokens read from the provider's cache. Default: as `input`."""
    cache_write: Rate | None = None
    """Tokens written to the provider's cache. Default: as `input`."""
    reasoning: Rate | None = None
    """Tokens spent on reasoning. Default: as `output`."""
    input_audio: Rate | None = None
    """Audio tokens read."""
    cached_input_audio: Rate | None = None
    """Audio tokens read from the provider's cache. Default: as `input_audio`."""
    output_audio: Rate | None = None
    """Audio tokens written."""
    per_request: Rate | None = None
    """Each call."""
    per_image: Rate | None = None
    """Each image."""
    per_second: Rate | None = None
    """Each second of audio."""
    per_1k_chars: Rate | None = None
    """A thousand characters."""
    max_output_tokens: Annotated[int, PlainValidator(values.whole(1, 10**9))] | None = None
    """The most that the model writes, in tokens."""
    context_window: Annotated[int, PlainValidator(values.whole(1, 10**9))] | None = None
    """The most that the model reads and writes together, in tokens."""

    @model_validator(mode="after")
    def _check(self) -> PriceSettings:
        if not self.rates:
            raise ValueError('it has no rate: give one, such as input = "1.00"')
        return self

    @property
    def rates(self) -> dict[str, Decimal]:
        """The rates that are given, by unit."""
        return {unit: value for unit in RATES if (value := getattr(self, unit)) is not None}


RATES: Final = tuple(
    name for name in PriceSettings.model_fields if name not in {"model", "provider", "max_output_tokens", "context_window"}
)
"""The units that a price can have a rate for."""


class TargetSettings(BaseModel):
    """Where an alias leads."""

    model_config = _TABLE

    provider: ProviderName
    """The provider's name."""
    model: Text
    """The model's name there."""
    weight: Annotated[int, PlainValidator(values.whole(1, 1_000))] = 1
    """Its share of the calls beside the other targets."""


class ModelSettings(BaseModel):
    """One `[[models]]`: an alias that clients ask for."""

    model_config = _TABLE

    name: Text
    """The name to ask for."""
    targets: tuple[TargetSettings, ...]
    """Where it leads, in order, by weight."""

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if "*" in self.name or "," in self.name:
            raise KeyFault("name", "it takes a name without * and commas")
        if not self.targets:
            raise KeyFault("targets", "it takes one target or more")
        return self
