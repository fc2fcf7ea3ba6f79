"""What is wrong with settings: pydantic's errors in our words, and what is only wrong between two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gateway.process.settings_source import ENVIRONMENT, PREFIX, Value, suggestion
from gateway.process.settings_tables import ModelSettings, PriceSettings, ProviderSettings, TargetSettings
from gateway.process.settings_values import KeyFault

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from gateway.process.settings import Settings

_Item = TypeVar("_Item")

_TABLES: Final[Mapping[str, type[Any]]] = {"providers": ProviderSettings, "prices": PriceSettings, "models": ModelSettings}
_HIDDEN: Final = frozenset({"admin_password", "database_url", "api_keys"})
_WILDCARDS: Final = frozenset({"0.0.0.0", "[::]", "::", "*"})  # noqa: S104 - compared with, not bound to
_LOCAL: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_WORDS: Final[Mapping[str, str]] = {
    "missing": "it is missing",
    "tuple_type": "it takes a list",
    "model_type": "it takes a table",
    "dict_type": "it takes a table",
}


def explain(
    errors: Sequence[ErrorDetails], raw: Mapping[str, Any], origins: Mapping[str, Value], model: type[Settings]
) -> Iterator[str]:
    """Each error as `file or environment: key: reason`."""
    for error in errors:
        if error["type"] == "default_factory_not_called":
            continue  # follows from another one
        location = list(error["loc"])
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, KeyFault):
            location.append(cause.key)
        origin = origins.get(str(location[0]), Value(None, ENVIRONMENT, PREFIX + str(location[0]).upper()))
        yield f"{origin.source}: {_key(origin.key, location[1:])}: {_reason(error, cause, raw, location, model)}"


def conflicts(settings: Settings, origins: Mapping[str, Value], left_out: frozenset[str]) -> Iterator[str]:
    """What is wrong between settings that are right by themselves.

    left_out: names of providers that are there but wrong, so no alias is blamed for them.
    """
    yield from _names(settings, origins, left_out)
    yield from _ports(settings, origins)
    if settings.body_pool < settings.body_limit:
        yield f"{_place('body_pool', origins)}: it takes at least body_limit, {settings.body_limit}"
    for given, missing in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(settings, given) is not None and getattr(settings, missing) is None:
            yield f"{_place(given, origins)}: {missing} is not set: TLS takes both"
    if settings.auth_address == settings.admin_address:
        yield f"{_place('admin_address', origins)}: auth_address is {settings.auth_address} too: give each service its own"


def _names(settings: Settings, origins: Mapping[str, Value], left_out: frozenset[str]) -> Iterator[str]:
    for name in _repeated(provider.name for provider in settings.providers):
        yield f"{_place('providers', origins)}: two providers are called {name}"
    for name in _repeated(alias.name for alias in settings.models):
        yield f"{_place('models', origins)}: two models are called {name}"
    for model, provider in _repeated((price.model, price.provider) for price in settings.prices):
        yield f"{_place('prices', origins)}: two prices are for {model}" + (f" of {provider}" if provider else "")
    # `openai` and `demo` are there by themselves, though not in every service's environment.
    known = {provider.name for provider in settings.providers} | left_out | {"openai", "demo"}
    for alias in settings.models:
        for target in alias.targets:
            if target.provider not in known:
                reason = f"{alias.name} leads to {target.provider}, which is no provider{suggestion(target.provider, known)}"
                yield f"{_place('models', origins)}: {reason}"


def _ports(settings: Settings, origins: Mapping[str, Value]) -> Iterator[str]:
    listens = {"http_port": f"{_bracketed(settings.http_host)}:{settings.http_port}"}
    if settings.admin_http not in {None, "off"}:
        listens["admin_http"] = str(settings.admin_http)
    for name in ("auth_listen", "admin_listen", "demo_listen"):
        listens[name] = getattr(settings, name)
    for name in ("auth_metrics_address", "admin_metrics_address", "proxy_metrics_address"):
        if (value := getattr(settings, name)) is not None:
            listens[name] = value
    names = list(listens)
    for index, second in enumerate(names):
        for first in names[:index]:
            if _same_port(listens[first], listens[second]):
                yield f"{_place(second, origins)}: {first} is at {listens[first]} too: give each its own port"


def _same_port(first: str, second: str) -> bool:
    (host, _, port), (other, _, other_port) = first.rpartition(":"), second.rpartition(":")
    if port != other_port or port == "0":
        return False
    # A name may be another machine's; an address of our own and a wildcard certainly meet.
    return host == other or (host in _WILDCARDS and other in _WILDCARDS | _LOCAL) or (other in _WILDCARDS and host in _LOCAL)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _place(name: str, origins: Mapping[str, Value]) -> str:
    origin = origins.get(name)
    return f"{origin.source}: {origin.key}" if origin else f"{ENVIRONMENT}: {PREFIX}{name.upper()}"


def _repeated(items: Iterable[_Item]) -> list[_Item]:
    return [item for item, count in Counter(items).items() if count > 1]


def _key(first: str, rest: Sequence[Any]) -> str:
    """`providers[0].base_url`."""
    return first + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in rest)


def _reason(
    error: ErrorDetails, cause: Exception | None, raw: Mapping[str, Any], location: Sequence[Any], model: type[Settings]
) -> str:
    if error["type"] == "extra_forbidden":
        table = _TABLES.get(str(location[0]), model)
        known = TargetSettings if "targets" in location else table
        return f"there is no such setting{suggestion(str(location[-1]), known.model_fields)}"
    told = str(cause) if cause is not None else _WORDS.get(error["type"], error["msg"])
    value = _given(raw, location)
    return told if value is None else f"{told} (it is {value!r:.80})"


def _given(raw: Any, location: Sequence[Any]) -> Any:
    """The plain value that was given there; None: there is none, or it is none of a log's business."""
    for step in location:
        if step in _HIDDEN:
            return None
        try:
            raw = raw[step]
        except (KeyError, IndexError, TypeError):
            return None
    return raw if isinstance(raw, (str, int, float)) and "@" not in str(raw) else None
