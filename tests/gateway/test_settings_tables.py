"""The tables of gateway.toml: providers, prices and aliases."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from gateway import usage
from gateway.process.settings import SettingsError, load_settings
from gateway.process.settings_tables import RATES
from tests.gateway.conftest import PROVIDER, Faults, Load


def test_the_tables_of_the_file_as_the_documentation_shows_them(load: Load) -> None:
    settings = load(
        """
        [[providers]]
        name = "openai"
        kind = "openai"
        base_url = "https://api.openai.com/v1"
        api_keys = ["env:OPENAI_API_KEY", "file:/run/secrets/openai"]
        models = ["gpt-*", "o*", "text-embedding-*"]

        [[providers]]
        name = "other"
        kind = "openai-compatible"
        base_url = "http://10.0.0.9:8000/v1"
        models = ["small-*"]

        [[prices]]
        model = "my-model"
        provider = "openai"
        input = "1.00"
        output = 2.10
        cached_input = "0.10"
        per_request = 0
        max_output_tokens = 4096
        context_window = 128000

        [[models]]
        name = "fast"
        targets = [{ provider = "openai", model = "gpt-4o-mini", weight = 3 }, { provider = "other", model = "small-1" }]
        """
    )
    openai, other, demo = settings.providers
    assert (openai.name, openai.kind, openai.price_provider, openai.literal_keys) == ("openai", "openai", "openai", 0)
    assert (other.name, other.price_provider, other.api_keys) == ("other", "other", ())
    assert demo.name == "demo"
    (price,) = settings.prices
    assert price.rates == {
        "input": Decimal("1.00"),
        "output": Decimal("2.10"),
        "cached_input": Decimal("0.10"),
        "per_request": Decimal(0),
    }
    assert (price.max_output_tokens, price.context_window) == (4096, 128_000)
    (alias,) = settings.models
    assert [(target.provider, target.model, target.weight) for target in alias.targets] == [
        ("openai", "gpt-4o-mini", 3),
        ("other", "small-1", 1),
    ]


def test_the_tables_can_come_from_the_environment(load: Load) -> None:
    settings = load(
        PROVIDER,
        PROVIDERS='[{"name": "x", "kind": "demo", "base_url": "http://localhost:1/v1", "models": ["x"]}]',
        PRICES='[{"model": "x", "input": 0.1}]',
    )
    assert [provider.name for provider in settings.providers] == ["x", "demo"]
    assert settings.prices[0].input == Decimal("0.1")


def test_every_unit_that_can_be_used_can_have_a_price() -> None:
    assert set(RATES) == usage.UNITS


@pytest.mark.parametrize("text", ["0", "12", "0.000001", "1e-7", "2.50"])
def test_prices_are_read_exactly(load: Load, text: str) -> None:
    for written in (text, f'"{text}"'):
        assert load(f'[[prices]]\nmodel = "m"\ninput = {written}').prices[0].rates == {"input": Decimal(text)}


@pytest.mark.parametrize("text", ["-1", "nan", "inf", '"NaN"', '""', '" 1"', '"1_0"', '"1,5"', "true", '"1e9"', '"$1"', "[1]"])
def test_a_price_that_is_no_decimal_of_0_or_more_is_a_fault(faults: Faults, text: str) -> None:
    (fault,) = faults(f'[[prices]]\nmodel = "m"\ninput = {text}')
    assert fault.startswith("gateway.toml: prices[0].input: it takes a decimal of 0 or more")


def test_a_price_without_a_rate_is_a_fault(faults: Faults) -> None:
    (fault,) = faults('[[prices]]\nmodel = "m"\nmax_output_tokens = 5')
    assert fault.startswith("gateway.toml: prices[0]: it has no rate")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("name = ", "nmae = "), "providers[0].nmae: there is no such setting; did you mean name?"),
        (('name = "local"', 'name = "Local Host"'), "providers[0].name: it takes lower-case letters"),
        (('name = "local"', 'name = "gateway"'), "providers[0].name: it takes lower-case letters"),
        (("openai-compatible", "anthropic"), "providers[0].kind: it takes openai or openai-compatible or demo"),
        (
            ('base_url = "http://127.0.0.1:11434/v1"', ""),
            "providers[0].base_url: it is missing: kind openai-compatible needs it",
        ),
        (("http://127.0.0.1:11434/v1", "http://2130706433/v1"), "providers[0].base_url: 2130706433 is an address in disguise"),
        (('models = ["llama-*"]', ""), "providers[0].models: it is missing"),
        (('["llama-*"]', '"llama-*"'), "providers[0].models: it takes a list"),
        (('["llama-*"]', "[]"), "providers[0].models: it takes a list"),
        (('["llama-*"]', '["a\\nb"]'), "providers[0].models: a model name has printable characters only"),
        (("models", 'allow_address = "yes"\nmodels'), "providers[0].allow_address: it takes true or false"),
        (("models", 'api_keys = "env:X"\nmodels'), "providers[0].api_keys: it takes a list"),
        (("models", 'api_keys = ["env:X", "env:X"]\nmodels'), "providers[0].api_keys: one key stands there twice"),
        (("models", 'api_keys = [""]\nmodels'), "providers[0].api_keys: key 1: it takes env:NAME"),
        (('"openai-compatible"', '"openai"'), "providers[0].api_keys: it is missing: kind openai needs a key"),
    ],
)
def test_a_wrong_provider_is_told_by_its_key(faults: Faults, change: tuple[str, str], fault: str) -> None:
    told = faults(PROVIDER.replace(*change))
    assert any(line.startswith(f"gateway.toml: {fault}") for line in told), told


def test_an_address_inside_is_good_where_it_is_allowed(load: Load) -> None:
    config = PROVIDER.replace("127.0.0.1:11434", "169.254.169.254") + "allow_address = true"
    assert load(config).providers[0].allow_address


def test_names_that_stand_there_twice_are_conflicts(faults: Faults) -> None:
    price = '[[prices]]\nmodel = "m"\nprovider = "local"\ninput = 1\n'
    alias = '[[models]]\nname = "fast"\ntargets = [{ provider = "local", model = "x" }]\n'
    assert faults(PROVIDER * 2 + price * 2 + alias * 2) == [
        "gateway.toml: providers: two providers are called local",
        "gateway.toml: models: two models are called fast",
        "gateway.toml: prices: two prices are for m of local",
    ]


def test_a_price_of_one_provider_goes_beside_one_of_all(load: Load) -> None:
    assert len(load('[[prices]]\nmodel = "m"\ninput = 1\n[[prices]]\nmodel = "m"\nprovider = "x"\ninput = 2').prices) == 2


def test_an_alias_may_lead_to_a_provider_whose_key_this_service_does_not_have(load: Load) -> None:
    settings = load('[[models]]\nname = "fast"\ntargets = [{ provider = "openai", model = "gpt-4o" }]')
    assert [provider.name for provider in settings.providers] == ["demo"]


def test_an_alias_needs_a_target(faults: Faults) -> None:
    (fault,) = faults('[[models]]\nname = "fast"\ntargets = []')
    assert fault == "gateway.toml: models[0].targets: it takes one target or more"


def test_openai_is_there_with_its_key(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    openai, demo = load_settings({"OPENAI_API_KEY": "sk-x"}).providers
    assert (openai.name, openai.kind, openai.api_keys) == ("openai", "openai", ("env:OPENAI_API_KEY",))
    assert openai.base_url == "https://api.openai.com/v1"
    assert "gpt-*" in openai.models
    assert demo.kind == "demo"
    assert [provider.name for provider in load_settings({"OPENAI_API_KEY": " "}).providers] == ["demo"]


def test_the_key_of_openai_may_stand_in_a_file_but_not_in_both_places():
    openai, _ = load_settings({"OPENAI_API_KEY_FILE": "/run/secrets/openai", "OPENAI_API_KEY": ""}).providers
    assert (openai.name, openai.api_keys) == ("openai", ("file:/run/secrets/openai",))
    with pytest.raises(SettingsError, match="OPENAI_API_KEY_FILE: OPENAI_API_KEY is set too"):
        load_settings({"OPENAI_API_KEY_FILE": "/run/secrets/openai", "OPENAI_API_KEY": "sk-x"})


def test_the_files_openai_is_the_only_one(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(PROVIDER.replace('"local"', '"openai"'))
    settings = load_settings({"GATEWAY_CONFIG": str(config), "OPENAI_API_KEY": "sk-x"})
    assert [(provider.name, provider.kind) for provider in settings.providers] == [
        ("openai", "openai-compatible"),
        ("demo", "demo"),
    ]


def test_the_demo_provider_is_where_the_operator_put_it(load: Load) -> None:
    (demo,) = load(DEMO_ADDRESS="demo:8090").providers
    assert (demo.base_url, demo.price_provider, demo.allow_address) == ("http://demo:8090/v1", "demo", True)
    assert demo.models == ("demo", "gpt-*", "claude-*", "gemini-*")
