"""The settings of a service: read once at the start from the environment and `gateway.toml`, then never changed.

Everything that is wrong is told at once. What a value may look like stands in `settings_values.py`, the tables of the file in
`settings_tables.py`, where values come from in `settings_source.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, SecretStr, ValidationError

from gateway.process import settings_values as values
from gateway.process.settings_conflicts import conflicts, explain
from gateway.process.settings_source import PREFIX, Value, collect
from gateway.process.settings_tables import (
    DEMO_MODELS,
    OPENAI_MODELS,
    ModelSettings,
    PriceSettings,
    ProviderSettings,
    TargetSettings,
)

__all__ = [
    "ModelSettings",
    "PriceSettings",
    "ProviderSettings",
    "Setting",
    "Settings",
    "SettingsError",
    "TargetSettings",
    "list_settings",
    "load_settings",
]

SECRETS: Final = frozenset({"admin_password", "database_url"})
"""Settings that may stand in a file of their own: `GATEWAY_<NAME>_FILE`."""
TABLES: Final = frozenset({"providers", "prices", "models"})

Listen = Annotated[str, PlainValidator(values.listen)]
Address = Annotated[str, PlainValidator(values.address)]
FilePath = Annotated[Path, PlainValidator(values.path)]


def _seconds(least: float, most: float) -> PlainValidator:
    return PlainValidator(values.number(least, most, "seconds"))


def _password(value: Any) -> SecretStr:
    secret = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(secret, str) and secret and "\n" not in secret and len(secret.encode("utf-8", "replace")) <= 1_024:
        return SecretStr(secret)
    raise ValueError("it takes one line of at most 1024 bytes")


class Settings(BaseModel):
    """All settings. In the environment each is `GATEWAY_` and its name in upper case."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    data_dir: FilePath = Path("data")
    """The folder of the database, the keys, the certificates and the outbox."""
    config: FilePath = Path("gateway.toml")
    """The file with these settings in lower case and the tables of providers, prices and models. In the environment only."""
    database_url: Annotated[str, PlainValidator(values.database_url)] = Field(
        default_factory=lambda data: f"sqlite:///{quote(str(data['data_dir']))}/gateway.db",
        repr=False,
        json_schema_extra={"default": "sqlite:///<data_dir>/gateway.db"},
    )
    """The database."""
    http_host: Annotated[str, PlainValidator(values.host)] = "127.0.0.1"
    """Where the proxy listens for applications: `0.0.0.0` is every address of this machine."""
    http_port: Annotated[int, PlainValidator(values.whole(0, 65_535))] = 8080
    """The proxy's port; 0 takes a free one."""
    admin_http: Annotated[str, PlainValidator(values.listen_or_off)] | None = Field(
        default=None, json_schema_extra={"default": "with the rest"}
    )
    """Where the proxy answers /admin and /auth: `host:port` for a listener of their own, `off` for nowhere."""
    tls_cert: FilePath | None = None
    """The file with the certificate of the proxy's HTTP ports and its chain, PEM. With it they speak https only."""
    tls_key: FilePath | None = None
    """The file with the key of that certificate, PEM without a passphrase. Both files are read again when they change."""
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], PlainValidator(values.networks)] = Field(
        default=(), json_schema_extra={"default": "none"}
    )
    """The addresses and networks, by commas, of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    cors_origins: Annotated[tuple[str, ...], PlainValidator(values.origins)] = Field(
        default=(), json_schema_extra={"default": "none"}
    )
    """The origins, by commas, whose pages may call /v1 from a browser, such as `https://app.example.com`."""
    auth_address: Address = "127.0.0.1:50051"
    """Where others reach auth: `host:port`, or for several `dns:///host:port`, or addresses with commas between them."""
    auth_listen: Listen = Field(
        default_factory=lambda data: data["auth_address"].removeprefix("dns:///").partition(",")[0],
        json_schema_extra={"default": "<auth_address>"},
    )
    """Where auth listens."""
    admin_address: Address = "127.0.0.1:50052"
    """Where others reach admin."""
    admin_listen: Listen = Field(
        default_factory=lambda data: data["admin_address"].removeprefix("dns:///").partition(",")[0],
        json_schema_extra={"default": "<admin_address>"},
    )
    """Where admin listens."""
    demo_address: Listen = "127.0.0.1:8090"
    """Where the proxy reaches the demo provider."""
    demo_listen: Listen = Field(
        default_factory=lambda data: data["demo_address"], json_schema_extra={"default": "<demo_address>"}
    )
    """Where the demo provider listens."""
    demo_pace: Annotated[float, PlainValidator(values.number(0, 1_000_000, "tokens a second"))] = 100.0
    """How fast the demo provider streams, in tokens a second; 0 is as fast as it can."""
    admin_password: Annotated[SecretStr, PlainValidator(_password)] | None = Field(
        default=None, json_schema_extra={"default": "made at the first start"}
    )
    """The password of the first administrator, `admin`. Read when there is no administrator yet."""
    auth_metrics_address: Listen | None = None
    """Where auth answers /healthz, /readyz and /metrics; unset: nowhere."""
    admin_metrics_address: Listen | None = None
    """Where admin answers /healthz, /readyz and /metrics; unset: nowhere."""
    proxy_metrics_address: Listen | None = None
    """Where the proxy answers /healthz, /readyz and /metrics; unset: nowhere."""
    retention_days: Annotated[int, PlainValidator(values.days_kept)] = 400
    """Days that auth keeps rows of calls and counts of refusals, 8 or more; 0: for good. Single refusals: 30 at most."""
    lame_duck: Annotated[float, _seconds(0, 3_600)] = 0.0
    """Seconds that a stopping service still takes calls, so that load balancers can notice that it is not ready."""
    drain: Annotated[float, _seconds(0, 86_400)] = 600.0
    """Seconds that a stopping service gives the calls that still run."""
    budget_status: Annotated[Literal[402, 429], PlainValidator(values.status(402, 429))] = 402
    """The HTTP status for a budget that is spent: 402, or 429 as OpenAI itself answers."""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], PlainValidator(values.choice("debug", "info", "warning", "error"))
    ] = "info"
    """The least that is logged: debug, info, warning or error."""
    log_format: Annotated[Literal["json", "console"], PlainValidator(values.choice("json", "console"))] | None = Field(
        default=None, json_schema_extra={"default": "console on a terminal, else json"}
    )
    """How it is logged: json or console."""
    identity_dir: FilePath | None = Field(default=None, json_schema_extra={"default": "<data_dir>/pki/<service>"})
    """The folder with the certificate of the service that runs here."""
    token_key_file: FilePath = Field(
        default_factory=lambda data: data["data_dir"] / "keys" / "token.key",
        json_schema_extra={"default": "<data_dir>/keys/token.key"},
    )
    """The file with the key under which client tokens are hashed."""
    outbox_dir: FilePath = Field(
        default_factory=lambda data: data["data_dir"] / "outbox", json_schema_extra={"default": "<data_dir>/outbox"}
    )
    """The folder where the proxy keeps usage that auth has not acknowledged yet. A local disk."""
    body_limit: Annotated[int, PlainValidator(values.whole(1_024, 2**30))] = 32 * 1024 * 1024
    """The largest request body, in bytes."""
    body_pool: Annotated[int, PlainValidator(values.whole(1_024, 2**40))] = 256 * 1024 * 1024
    """The most that all request bodies together may take in memory, in bytes."""
    max_connections: Annotated[int, PlainValidator(values.whole(1, 1_000_000))] = 10_000
    """The most connections that the proxy holds open for applications."""
    max_connections_per_address: Annotated[int, PlainValidator(values.whole(1, 1_000_000))] = 2_500
    """The most of them from one address (IPv6: one /64). Trusted proxies may have more."""
    upstream_connect_timeout: Annotated[float, _seconds(0.1, 600)] = 10.0
    """Seconds to connect to a provider."""
    upstream_first_byte_timeout: Annotated[float, _seconds(0.1, 3_600)] = 600.0
    """Seconds from the request to the first byte of a provider's answer."""
    upstream_idle_timeout: Annotated[float, _seconds(0.1, 3_600)] = 300.0
    """Seconds between two bytes of a provider's answer."""
    upstream_total_timeout: Annotated[float, _seconds(0.1, 86_400)] = 3_600.0
    """Seconds that a provider may take for one answer in all, streams included."""
    on_hangup: Annotated[Literal["cancel", "drain"], PlainValidator(values.choice("cancel", "drain"))] = "cancel"
    """When the caller hangs up: `cancel` the provider's answer, or `drain` it, to be charged by its own numbers."""
    providers: tuple[ProviderSettings, ...] = Field(
        default=(), json_schema_extra={"default": "demo; openai with OPENAI_API_KEY or OPENAI_API_KEY_FILE"}
    )
    """The providers: `[[providers]]` in the file, a JSON array in the environment."""
    prices: tuple[PriceSettings, ...] = Field(default=(), json_schema_extra={"default": "the built-in table"})
    """Prices over the built-in table: `[[prices]]` in the file, a JSON array in the environment."""
    models: tuple[ModelSettings, ...] = Field(default=(), json_schema_extra={"default": "none"})
    """Aliases: `[[models]]` in the file, a JSON array in the environment."""

    def identity_dir_for(self, service: str) -> Path:
        """The folder with a service's certificate."""
        return self.identity_dir if self.identity_dir is not None else self.data_dir / "pki" / service


class SettingsError(Exception):
    """Settings that nothing can start with: every fault, each with file or variable, key, reason and what it takes."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, for people: `gateway check` and the documentation."""

    name: str
    variable: str
    file_variable: str
    """The variable that names a file with the value; empty: there is none."""
    default: str
    doc: str


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The settings, from an environment and the file that it names. Raises SettingsError with every fault."""
    found = collect(environ, Settings.model_fields, SECRETS, TABLES)
    raw = {name: value.value for name, value in found.values.items()}
    faults = list(found.faults)
    settings, left_out = _validate(raw, found.values, faults)
    faults.extend(conflicts(settings, found.values, left_out))
    if len(_openai_keys(environ)) > 1:
        faults.append("environment: OPENAI_API_KEY_FILE: OPENAI_API_KEY is set too: set one of them")
    if faults:
        raise SettingsError(faults)
    return settings.model_copy(update={"providers": (*settings.providers, *_built_in(settings, environ))})


def list_settings() -> tuple[Setting, ...]:
    """All settings, in order."""
    return tuple(
        Setting(
            name,
            PREFIX + name.upper(),
            f"{PREFIX}{name.upper()}_FILE" if name in SECRETS else "",
            _default_text(field.json_schema_extra, field.default),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    )


def _validate(raw: dict[str, Any], origins: Mapping[str, Value], faults: list[str]) -> tuple[Settings, frozenset[str]]:
    """The settings without what is wrong in them, so that conflicts between the others are found too.

    Notes the faults; also gives the names of providers that were left out.
    """
    try:
        return Settings.model_validate(raw), frozenset()
    except ValidationError as error:
        wrong = error.errors()
    faults.extend(explain(wrong, raw, origins, Settings))
    places: dict[str, set[int]] = {}
    for fault in wrong:
        name, rest = str(fault["loc"][0]), fault["loc"][1:]
        if rest and isinstance(rest[0], int):
            places.setdefault(name, set()).add(rest[0])
        elif name in raw:
            places.setdefault(name, set()).update(range(len(raw[name])) if isinstance(raw[name], list) else ())
            raw = {key: value for key, value in raw.items() if key != name}
    named = {item.get("name") for item in _items(raw, "providers") if isinstance(item, dict)}
    for name, indices in places.items():
        if name in raw:
            raw = {**raw, name: [item for index, item in enumerate(raw[name]) if index not in indices]}
    return Settings.model_validate(raw), frozenset(str(name) for name in named)


def _items(raw: dict[str, Any], name: str) -> list[Any]:
    value = raw.get(name)
    return value if isinstance(value, list) else []


def _built_in(settings: Settings, environ: Mapping[str, str]) -> list[ProviderSettings]:
    """The providers that nobody has to write down: openai where its key is, and the demo provider."""
    names = {provider.name for provider in settings.providers}
    added = []
    keys = _openai_keys(environ)
    if "openai" not in names and keys:
        added.append(ProviderSettings(name="openai", kind="openai", api_keys=keys, models=OPENAI_MODELS))
    if "demo" not in names:
        # Our own server, wherever the operator put it: in compose its name resolves to a private address.
        url = f"http://{settings.demo_address}/v1"
        added.append(ProviderSettings(name="demo", kind="demo", base_url=url, models=DEMO_MODELS, allow_address=True))
    return added


def _openai_keys(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Where OpenAI's key is, as `api_keys` would say it."""
    variable, file = (environ.get(name, "").strip() for name in ("OPENAI_API_KEY", "OPENAI_API_KEY_FILE"))
    return ("env:OPENAI_API_KEY",) * bool(variable) + (f"file:{file}",) * bool(file)


def _default_text(extra: Any, default: Any) -> str:
    if isinstance(extra, dict) and "default" in extra:
        return str(extra["default"])
    return "unset" if default is None else str(default)
