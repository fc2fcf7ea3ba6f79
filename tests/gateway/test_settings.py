"""Settings from the environment and from gateway.toml: what they are, and every way in which they can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway import usage
from gateway.process.settings import Settings, SettingsError, list_settings, load_settings
from gateway.process.settings_tables import RATES

Load = Callable[..., Settings]

PROVIDER = """
[[providers]]
name = "local"
kind = "openai-compatible"
base_url = "http://127.0.0.1:11434/v1"
models = ["llama-*"]
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Settings from the text of a gateway.toml and variables, given without their GATEWAY_."""

    def from_text(config: str = "", **variables: str) -> Settings:
        file = tmp_path / "gateway.toml"
        file.write_text(config)
        return load_settings({"GATEWAY_CONFIG": str(file), **{f"GATEWAY_{name}": value for name, value in variables.items()}})

    return from_text


@pytest.fixture
def faults(load: Load, tmp_path: Path) -> Callable[..., list[str]]:
    """The faults of such settings, with the file's path shortened."""

    def of(config: str = "", **variables: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            load(config, **variables)
        assert str(caught.value) == "\n".join(caught.value.faults)
        return [fault.replace(str(tmp_path / "gateway.toml"), "gateway.toml") for fault in caught.value.faults]

    return of


Faults = Callable[..., list[str]]


def test_nothing_set_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"PATH": "/bin", "HOME": "/root"})
    assert settings.data_dir == Path("data")
    assert settings.database_url == "sqlite:///data/gateway.db"
    assert (settings.http_host, settings.http_port) == ("127.0.0.1", 8080)
    assert (settings.auth_listen, settings.auth_address) == ("127.0.0.1:50051", "127.0.0.1:50051")
    assert (settings.admin_listen, settings.admin_address) == ("127.0.0.1:50052", "127.0.0.1:50052")
    assert (settings.demo_listen, settings.demo_address) == ("127.0.0.1:8090", "127.0.0.1:8090")
    assert settings.admin_password is None
    assert settings.auth_metrics_address is settings.admin_metrics_address is settings.proxy_metrics_address is None
    assert (settings.lame_duck, settings.drain, settings.budget_status) == (0.0, 600.0, 402)
    assert (settings.log_level, settings.log_format) == ("info", None)
    assert settings.identity_dir_for("auth") == Path("data/pki/auth")
    assert settings.token_key_file == Path("data/keys/token.key")
    assert settings.outbox_dir == Path("data/outbox")


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("DATA_DIR", "/data", "data_dir", Path("/data")),
        ("DATABASE_URL", "postgresql://u@db/gw", "database_url", "postgresql://u@db/gw"),
        ("HTTP_HOST", "0.0.0.0", "http_host", "0.0.0.0"),
        ("HTTP_PORT", " 8081 ", "http_port", 8081),
        ("AUTH_LISTEN", "0.0.0.0:50051", "auth_listen", "0.0.0.0:50051"),
        ("AUTH_ADDRESS", "dns:///auth:50051", "auth_address", "dns:///auth:50051"),
        ("ADMIN_LISTEN", "[::]:50052", "admin_listen", "[::]:50052"),
        ("ADMIN_ADDRESS", "admin:50052", "admin_address", "admin:50052"),
        ("DEMO_LISTEN", "0.0.0.0:8090", "demo_listen", "0.0.0.0:8090"),
        ("DEMO_ADDRESS", "demo:8090", "demo_address", "demo:8090"),
        ("DEMO_PACE", "20", "demo_pace", 20.0),
        ("AUTH_METRICS_ADDRESS", "0.0.0.0:9101", "auth_metrics_address", "0.0.0.0:9101"),
        ("ADMIN_METRICS_ADDRESS", "0.0.0.0:9102", "admin_metrics_address", "0.0.0.0:9102"),
        ("PROXY_METRICS_ADDRESS", "0.0.0.0:9103", "proxy_metrics_address", "0.0.0.0:9103"),
        ("LAME_DUCK", "5", "lame_duck", 5.0),
        ("DRAIN", "0.5", "drain", 0.5),
        ("BUDGET_STATUS", "429", "budget_status", 429),
        ("LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("LOG_FORMAT", "json", "log_format", "json"),
        ("IDENTITY_DIR", "/id", "identity_dir", Path("/id")),
        ("TOKEN_KEY_FILE", "/k", "token_key_file", Path("/k")),
        ("OUTBOX_DIR", "/o", "outbox_dir", Path("/o")),
        ("BODY_LIMIT", "2048", "body_limit", 2048),
        ("BODY_POOL", "99999999", "body_pool", 99_999_999),
        ("MAX_CONNECTIONS", "7", "max_connections", 7),
        ("UPSTREAM_CONNECT_TIMEOUT", "1", "upstream_connect_timeout", 1.0),
        ("UPSTREAM_FIRST_BYTE_TIMEOUT", "2", "upstream_first_byte_timeout", 2.0),
        ("UPSTREAM_IDLE_TIMEOUT", "3", "upstream_idle_timeout", 3.0),
        ("ON_HANGUP", "drain", "on_hangup", "drain"),
    ],
)
def test_every_setting_has_its_variable(load: Load, variable: str, text: str, field: str, value: object) -> None:
    assert getattr(load(**{variable: text}), field) == value


def test_the_password_is_kept_out_of_sight(load: Load) -> None:
    settings = load(ADMIN_PASSWORD="correct horse battery")
    assert settings.admin_password is not None
    assert settings.admin_password.get_secret_value() == "correct horse battery"
    assert "horse" not in repr(settings) + str(settings)


def test_urls_and_keys_that_hold_secrets_are_kept_out_of_sight(load: Load) -> None:
    settings = load(PROVIDER + 'api_keys = ["sk-literal-key"]', DATABASE_URL="postgresql://u:hunter2@db/gw")
    assert "hunter2" not in repr(settings)
    assert "sk-literal" not in repr(settings)
    assert settings.providers[0].literal_keys == 1


def test_what_depends_on_the_data_directory_follows_it(load: Load) -> None:
    settings = load(DATA_DIR="/srv/a b#1")
    assert settings.database_url == "sqlite:////srv/a%20b%231/gateway.db"
    assert settings.token_key_file == Path("/srv/a b#1/keys/token.key")
    assert settings.identity_dir_for("proxy") == Path("/srv/a b#1/pki/proxy")


def test_listening_follows_the_address_where_it_is_not_set(load: Load) -> None:
    settings = load(AUTH_ADDRESS="dns:///auth:50051", ADMIN_ADDRESS="127.0.0.1:6000", DEMO_ADDRESS="demo:7000")
    assert (settings.auth_listen, settings.admin_listen, settings.demo_listen) == ("auth:50051", "127.0.0.1:6000", "demo:7000")


def test_empty_variables_are_as_good_as_none(load: Load) -> None:
    names = [row.variable.removeprefix("GATEWAY_") for row in list_settings() if row.name != "config"]
    empty = load(**dict.fromkeys(names, ""), ADMIN_PASSWORD_FILE="", NEVER_HEARD_OF=" ")
    assert empty == load()


def test_the_file_has_the_same_settings_in_lower_case(load: Load) -> None:
    settings = load('http_port = 9000\ndrain = 1.5\nlog_level = "debug"\ndata_dir = "/d"\nbudget_status = 429')
    assert (settings.http_port, settings.drain, settings.log_level, settings.budget_status) == (9000, 1.5, "debug", 429)
    assert settings.outbox_dir == Path("/d/outbox")


def test_the_environment_beats_the_file(load: Load) -> None:
    assert load("http_port = 9000", HTTP_PORT="9001").http_port == 9001


def test_a_secret_can_stand_in_a_file_of_its_own(load: Load, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(" two words \n")
    by_variable = load(ADMIN_PASSWORD_FILE=str(tmp_path / "secret"))
    by_file = load(f'admin_password_file = "{tmp_path / "secret"}"')
    for settings in (by_variable, by_file):
        assert settings.admin_password is not None
        assert settings.admin_password.get_secret_value() == " two words "


def test_a_secret_given_twice_is_a_conflict(faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x" * 10)
    path = str(tmp_path / "secret")
    assert faults(ADMIN_PASSWORD="a" * 10, ADMIN_PASSWORD_FILE=path) == [
        "environment: GATEWAY_ADMIN_PASSWORD_FILE: GATEWAY_ADMIN_PASSWORD is set too: set one of them"
    ]
    assert faults(f'admin_password = "aaaaaaaaaa"\nadmin_password_file = "{path}"') == [
        "gateway.toml: admin_password_file: admin_password is set too: set one of them"
    ]


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), (b"", "empty"), (b"\xff\xfe", "not UTF-8")])
def test_a_secrets_file_that_holds_none_is_a_fault(faults: Faults, tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    (fault,) = faults(ADMIN_PASSWORD_FILE=str(tmp_path / "secret"))
    assert fault.startswith("environment: GATEWAY_ADMIN_PASSWORD_FILE: ")
    assert why in fault


def test_every_fault_is_told_at_once(faults: Faults) -> None:
    config = (
        'htp_port = 1\nlame_duck = "soon"\n'
        + PROVIDER.replace("http://127.0.0.1:11434/v1", "http://169.254.169.254/v1")
        + '[[prices]]\nmodel = "m"\ninput = "-1"\n'
        + '[[models]]\nname = "fast"\ntargets = [{ provider = "lcal", model = "x" }]\n'
    )
    assert faults(config, HTTP_PORT="high", LOG_LEVEL="loud", DRIAN="5") == [
        "environment: GATEWAY_DRIAN: there is no such setting; did you mean GATEWAY_DRAIN?",
        "gateway.toml: htp_port: there is no such setting; did you mean http_port?",
        "environment: GATEWAY_HTTP_PORT: it takes a whole number from 0 to 65535 (it is 'high')",
        "gateway.toml: lame_duck: it takes a number of seconds from 0 to 3600 (it is 'soon')",
        "environment: GATEWAY_LOG_LEVEL: it takes debug or info or warning or error (it is 'loud')",
        "gateway.toml: providers[0].base_url: 169.254.169.254 is a cloud's metadata service: set allow_address = true if you "
        "mean it (it is 'http://169.254.169.254/v1')",
        "gateway.toml: prices[0].input: it takes a decimal of 0 or more in text, such as \"2.50\" (it is '-1')",
        "gateway.toml: models: fast leads to lcal, which is no provider; did you mean local?",
    ]


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HTTP_PORT", "65536"),
        ("HTTP_PORT", "-1"),
        ("HTTP_PORT", "8080.0"),
        ("HTTP_PORT", "٨٠٨٠"),
        ("HTTP_HOST", "http://x"),
        ("AUTH_LISTEN", "50051"),
        ("AUTH_LISTEN", ":50051"),
        ("AUTH_LISTEN", "::1:50051"),
        ("AUTH_LISTEN", "dns:///auth:50051"),
        ("AUTH_ADDRESS", "https://auth:50051"),
        ("AUTH_ADDRESS", "auth:port"),
        ("DRAIN", "nan"),
        ("DRAIN", "inf"),
        ("DRAIN", "-1"),
        ("LAME_DUCK", "5s"),
        ("BUDGET_STATUS", "403"),
        ("ON_HANGUP", "ignore"),
        ("LOG_FORMAT", "xml"),
        ("BODY_LIMIT", "32MiB"),
        ("BODY_LIMIT", "0"),
        ("DATABASE_URL", "mysql://x"),
        ("DATABASE_URL", "data/gateway.db"),
        ("DATABASE_URL", "sqlite:///"),
        ("PROVIDERS", "{"),
        ("PROVIDERS", "{}"),
        ("PROVIDERS", "[1]"),
    ],
)
def test_a_value_that_cannot_be_is_one_fault_that_says_what_is_taken(faults: Faults, variable: str, text: str) -> None:
    (fault,) = faults(**{variable: text})
    assert fault.startswith(f"environment: GATEWAY_{variable}")
    assert "it takes" in fault


def test_no_fault_tells_a_secret(faults: Faults, tmp_path: Path) -> None:
    config = PROVIDER + 'api_keys = ["sk-hunter2 with space", "env:1"]\n'
    for told in (
        faults(config, DATABASE_URL="mysql://u:hunter2@db/x", ADMIN_PASSWORD="hunter2\nhunter2"),
        faults(PROVIDER.replace("127.0.0.1:11434", "u:hunter2@h")),
    ):
        assert told
        assert "hunter2" not in "".join(told)


@pytest.mark.parametrize("value", ["true", '"x"', "1.5", "[1]", "{}"])
def test_a_toml_value_of_the_wrong_type_is_a_fault(faults: Faults, value: str) -> None:
    (fault,) = faults(f"http_port = {value}")
    assert fault.startswith("gateway.toml: http_port: it takes a whole number from 0 to 65535")


def test_text_that_is_no_toml_is_told_with_its_line(faults: Faults) -> None:
    (fault,) = faults("http_port = 1\nname = x")
    assert fault.startswith("gateway.toml: ")
    assert "line 2" in fault


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"GATEWAY_CONFIG: there is no file .*nowhere\.toml"):
        load_settings({"GATEWAY_CONFIG": str(tmp_path / "nowhere.toml")})


def test_a_folder_in_the_files_place_is_a_fault(tmp_path: Path) -> None:
    """What Docker makes of a file that was to be mounted and is not there."""
    with pytest.raises(SettingsError, match="directory"):
        load_settings({"GATEWAY_CONFIG": str(tmp_path)})


def test_the_file_cannot_name_another_file(faults: Faults) -> None:
    assert faults('config = "other.toml"') == ["gateway.toml: config: there is no such setting"]


KUBERNETES = {
    "SERVICE_HOST": "10.96.0.7",
    "SERVICE_PORT": "8080",
    "SERVICE_PORT_HTTP": "8080",
    "PORT": "tcp://10.96.0.7:8080",
    "PORT_8080_TCP": "tcp://10.96.0.7:8080",
    "PORT_8080_TCP_PROTO": "tcp",
    "PORT_8080_TCP_PORT": "8080",
    "PORT_8080_TCP_ADDR": "10.96.0.7",
    "AUTH_SERVICE_HOST": "10.96.0.8",
    "AUTH_PORT": "tcp://10.96.0.8:50051",
    "AUTH_PORT_50051_TCP_ADDR": "10.96.0.8",
    "HTTP_PORT": "tcp://10.96.0.9:8080",
}


def test_what_kubernetes_adds_is_no_setting(load: Load) -> None:
    assert load(**KUBERNETES) == load()


def test_a_mistyped_port_is_not_taken_for_what_kubernetes_adds(faults: Faults) -> None:
    assert faults(HTP_PORT="8081") == [
        "environment: GATEWAY_HTP_PORT: there is no such setting; did you mean GATEWAY_HTTP_PORT?"
    ]


def test_ports_that_meet_are_a_conflict(faults: Faults) -> None:
    assert faults(HTTP_PORT="8090") == [
        "environment: GATEWAY_DEMO_LISTEN: http_port is at 127.0.0.1:8090 too: give each its own port"
    ]
    assert faults("http_port = 50052", HTTP_HOST="0.0.0.0") == [
        "environment: GATEWAY_ADMIN_LISTEN: http_port is at 0.0.0.0:50052 too: give each its own port"
    ]
    (fault,) = faults(AUTH_METRICS_ADDRESS="0.0.0.0:9100", ADMIN_METRICS_ADDRESS="127.0.0.1:9100")
    assert "auth_metrics_address" in fault


def test_the_same_port_on_other_machines_is_none(load: Load) -> None:
    load(AUTH_ADDRESS="auth:50051", ADMIN_ADDRESS="admin:50051", HTTP_PORT="50051")


def test_auth_and_admin_at_one_address_are_a_conflict(faults: Faults) -> None:
    assert any(
        fault == "environment: GATEWAY_ADMIN_ADDRESS: auth_address is x:1 too: give each service its own"
        for fault in faults(AUTH_ADDRESS="x:1", ADMIN_ADDRESS="x:1", ADMIN_LISTEN="127.0.0.1:2")
    )


def test_the_body_pool_holds_a_body(faults: Faults) -> None:
    assert faults(BODY_POOL="2048") == ["environment: GATEWAY_BODY_POOL: it takes at least body_limit, 33554432"]


def test_settings_cannot_be_changed(load: Load) -> None:
    settings = load(PROVIDER)
    with pytest.raises(ValidationError, match="frozen"):
        settings.http_port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.providers[0].name = "x"  # type: ignore[misc]


def test_the_list_of_settings_is_whole() -> None:
    rows = list_settings()
    assert [row.name for row in rows] == list(Settings.model_fields)
    for row in rows:
        assert row.variable == f"GATEWAY_{row.name.upper()}"
        assert row.doc
        assert row.default
    assert {row.file_variable for row in rows} - {""} == {"GATEWAY_ADMIN_PASSWORD_FILE", "GATEWAY_DATABASE_URL_FILE"}


# -- the tables ---------------------------------------------------------------------------------------------------------------


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
