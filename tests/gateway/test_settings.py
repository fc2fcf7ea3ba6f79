"""Settings from the environment and from gateway.toml: what they are, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.process.settings import Settings, SettingsError, list_settings, load_settings
from tests.gateway.conftest import PROVIDER, Faults, Load


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
        ("AUTH_ADDRESS", "10.0.0.7:50051,10.0.0.8:50051", "auth_address", "10.0.0.7:50051,10.0.0.8:50051"),
        ("ADMIN_ADDRESS", "[::1]:50052,[::2]:50052", "admin_address", "[::1]:50052,[::2]:50052"),
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


def test_where_several_are_dialled_the_first_is_where_this_one_listens(load: Load) -> None:
    assert load(AUTH_ADDRESS="127.0.0.1:5001,127.0.0.1:5002").auth_listen == "127.0.0.1:5001"


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
        ("AUTH_ADDRESS", "auth-1:50051,auth-2:50051"),
        ("AUTH_ADDRESS", "10.0.0.7:50051,[::1]:50051"),
        ("AUTH_ADDRESS", "10.0.0.7:50051,"),
        ("AUTH_ADDRESS", "dns:///10.0.0.7:50051,10.0.0.8:50051"),
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
