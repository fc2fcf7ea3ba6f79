"""The Compose files keep what they promise; `make compose-check` asks a real engine the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.process.settings import list_settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
BASE, POSTGRES = ROOT / "docker-compose.yml", ROOT / "deploy" / "compose.postgres.yml"
SERVICES = ("init", "auth", "admin", "demo", "proxy")
_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-+])([^}]*))?\}")


class Loader(yaml.SafeLoader):
    """YAML as Compose reads it."""


# `!override` says that a list replaces the first file's instead of being added to it.
Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), Loader)


def resolved(text: Any) -> str:
    """A value with nothing set: `${NAME:-default}` is its default."""
    return _VARIABLE.sub(lambda match: match[3] if match[2] == "-" else "", str(text))


def all_services() -> list[tuple[str, dict[str, Any]]]:
    """Each service of both files that is whole in its file; the second file only adds to some of the first."""
    base, overlay = load(BASE)["services"], load(POSTGRES)["services"]
    return [*base.items(), *((name, service) for name, service in overlay.items() if name not in base)]


def environments() -> list[tuple[str, dict[str, str]]]:
    """Each service's environment with nothing set, with and without PostgreSQL."""
    base, overlay = load(BASE)["services"], load(POSTGRES)["services"]
    found = []
    for name in SERVICES:
        own = {key: resolved(value) for key, value in base[name]["environment"].items() if value is not None}
        found += [(name, own), (name, own | overlay.get(name, {}).get("environment", {}))]
    return found


@pytest.fixture(params=all_services(), ids=lambda param: param[0])
def service(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param


def test_every_container_is_read_only_and_has_no_way_to_gain_rights(service):
    name, about = service
    assert about["read_only"] is True
    assert about["cap_drop"] == ["ALL"]
    assert about["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in about
    assert name == "postgres" or "cap_add" not in about


def test_every_container_of_ours_runs_as_10001(service):
    name, about = service
    assert about.get("user") == (None if name == "postgres" else "10001:10001")


def test_every_container_is_limited_in_memory_processes_and_cpu(service):
    _, about = service
    assert re.fullmatch(r"[0-9]+[mg]", about["mem_limit"])
    assert 0 < about["pids_limit"] <= 512
    assert about["cpus"] == 1.0  # a machine with one core refuses more


def test_what_runs_on_says_whether_it_is_healthy_and_what_ends_is_not_started_again(service):
    name, about = service
    if name in {"init", "postgres-password"}:
        assert about["restart"] == "no"
    else:
        assert about["restart"] == "unless-stopped"
        assert about["healthcheck"]["test"][0] == "CMD"


def test_our_health_checks_are_our_own_command(service):
    name, about = service
    if name in SERVICES and name != "init":
        assert about["healthcheck"]["test"] == ["CMD", "gateway", "health", name]


def test_the_image_is_built_once_for_all_and_asked_of_no_registry(service):
    name, about = service
    assert ("build" in about) is (name == "init")
    if name != "postgres":
        assert about["image"] == "${GATEWAY_IMAGE:-gateway-zero}"
        assert about["pull_policy"] == "never"


def test_only_the_proxy_is_published_and_only_on_loopback():
    base, overlay = load(BASE)["services"], load(POSTGRES)["services"]
    assert {name for name, about in [*base.items(), *overlay.items()] if "ports" in about} == {"proxy"}
    assert [resolved(port) for port in base["proxy"]["ports"]] == ["127.0.0.1:8080:8080"]
    assert [resolved(port) for port in overlay["proxy"]["ports"]] == ["127.0.0.1:8080-8081:8080"]
    assert not any("network_mode" in about and about["network_mode"] != "none" for _, about in all_services())


def test_only_the_proxy_has_a_way_out():
    whole = load(BASE)
    assert whole["networks"]["inside"] == {"internal": True}
    reach = {name: set(about.get("networks", ())) for name, about in all_services()}
    assert {name for name, networks in reach.items() if networks - {"inside"}} == {"proxy"}


def test_docker_kills_later_than_the_longest_stop():
    for name, about in all_services():
        if name in SERVICES and name != "init":
            environment = load(BASE)["services"][name]["environment"]
            longest = float(resolved(environment["GATEWAY_LAME_DUCK"])) + float(resolved(environment["GATEWAY_DRAIN"]))
            assert longest == 605
            assert int(resolved(about["stop_grace_period"]).removesuffix("s")) >= longest + 30


def mounts(name: str) -> dict[str, tuple[str, bool]]:
    """Where each volume of a service is mounted, and whether it may be written to; both files together."""
    found = {}
    for path in (BASE, POSTGRES):
        for mount in load(path)["services"].get(name, {}).get("volumes", ()):
            volume, where, *mode = mount.split(":")
            found[volume] = (where, mode != ["ro"])
    return found


def test_each_service_has_its_own_secrets_and_no_other_ones():
    secrets = {"authority", "auth-identity", "admin-identity", "operator-identity", "proxy-identity", "token-key"}
    assert {name: secrets & mounts(name).keys() for name in SERVICES} == {
        "init": secrets,
        "auth": {"auth-identity", "token-key"},
        "admin": {"admin-identity", "operator-identity", "token-key"},
        "demo": set(),
        "proxy": {"proxy-identity"},
    }
    for name in ("auth", "admin", "proxy"):
        assert not any(writable for volume, (_, writable) in mounts(name).items() if volume in {*secrets, "postgres-password"})


def test_the_proxy_sees_no_database_and_keeps_its_outbox():
    assert "database" not in mounts("proxy")
    assert "postgres-password" not in mounts("proxy")
    assert mounts("proxy")["outbox"] == ("/data/outbox", True)


def test_volumes_are_mounted_where_the_image_has_a_folder_of_10001():
    """A volume takes its owner from there; elsewhere it would be root's, and nobody could write to it."""
    made = re.search(r"for folder in (.*?); do", (ROOT / "Dockerfile").read_text(), re.DOTALL)
    assert made is not None
    folders = {f"/{folder}" for folder in made[1].replace("\\\n", " ").split()}
    for name in (*SERVICES, "postgres-password"):
        assert {where for where, _ in mounts(name).values()} <= folders


def test_no_secret_stands_in_the_files():
    for path in (BASE, POSTGRES):
        for name, about in load(path)["services"].items():
            for key, value in about.get("environment", {}).items():
                if re.search("PASSWORD|API_KEY|SECRET|TOKEN_KEY|DATABASE_URL", key):
                    assert value is None or resolved(value) == "" or resolved(value).startswith("/"), (name, key)
    example = (ROOT / ".env.example").read_text()
    given = dict(line.removeprefix("#").split("=", 1) for line in example.splitlines() if re.match(r"#?[A-Z_]+=", line))
    assert [name for name, value in given.items() if re.search("PASSWORD|API_KEY", name) and value] == []
    assert not any(not line.startswith("#") for line in example.splitlines() if line)


def test_keys_of_providers_reach_the_proxy_alone():
    for path in (BASE, POSTGRES):
        for name, about in load(path)["services"].items():
            if name != "proxy":
                assert not [key for key in about.get("environment", {}) if "API_KEY" in key]
                assert "env_file" not in about
                assert "openai_api_key" not in about.get("secrets", ())


def test_every_variable_that_a_user_can_set_is_in_the_example_with_its_default_and_no_other_one():
    used: dict[str, str] = {}
    for path in (BASE, POSTGRES):
        text = re.sub(r"\$\$.*", "", path.read_text())
        for name, kind, default in _VARIABLE.findall(text):
            used[name] = default if kind == "-" and default != "/dev/null" else used.get(name, "")
    used |= dict.fromkeys(("BASE_IMAGE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "OPENAI_API_KEY"), "")
    used["BASE_IMAGE"] = "python:3.13-slim"
    example = (ROOT / ".env.example").read_text()
    assert dict(line[1:].split("=", 1) for line in example.splitlines() if re.match(r"#[A-Z_]+=", line)) == used


@pytest.mark.parametrize(("name", "environment"), environments())
def test_the_settings_of_each_container_are_taken_and_name_nothing_unknown(name, environment, tmp_path):
    given = {key: value for key, value in environment.items() if key.startswith("GATEWAY_")}
    if "GATEWAY_DATABASE_URL_FILE" in given:
        (tmp_path / "url").write_text("postgresql://gateway:secret@postgres:5432/gateway\n")
        given["GATEWAY_DATABASE_URL_FILE"] = str(tmp_path / "url")
    settings = load_settings(given)
    assert str(settings.data_dir) == "/data"
    known = {variable for setting in list_settings() for variable in (setting.variable, setting.file_variable)}
    assert given.keys() <= known


def test_services_find_each_other_by_the_names_and_ports_that_they_listen_on():
    for proxy in [environment for name, environment in environments() if name == "proxy"]:
        for service, key in (("auth", "GATEWAY_AUTH"), ("admin", "GATEWAY_ADMIN"), ("demo", "GATEWAY_DEMO")):
            listen = next(environment for name, environment in environments() if name == service)[f"{key}_LISTEN"]
            host, port = proxy[f"{key}_ADDRESS"].removeprefix("dns:///").rsplit(":", 1)
            assert (host, listen) == (service, f"0.0.0.0:{port}")


def test_the_operator_at_admin_asks_the_auth_that_the_proxy_asks():
    """`gateway explain` is run there, with the operator's certificate, which no other container has."""
    given = environments()
    pairs = zip(
        [found for name, found in given if name == "admin"], [found for name, found in given if name == "proxy"], strict=True
    )
    for admin, proxy in pairs:
        assert admin["GATEWAY_AUTH_ADDRESS"] == proxy["GATEWAY_AUTH_ADDRESS"]
    assert "operator-identity" in mounts("admin")
    base = load(BASE)["services"]
    assert set(base["admin"]["networks"]) & set(base["auth"]["networks"]) == {"inside"}


def test_copies_are_found_by_all_the_addresses_of_their_name():
    proxy = [environment for name, environment in environments() if name == "proxy"][1]
    assert proxy["GATEWAY_AUTH_ADDRESS"] == "dns:///auth:50051"
    assert proxy["GATEWAY_ADMIN_ADDRESS"] == "dns:///admin:50052"


def test_there_are_as_many_ports_as_proxies():
    """In a longer range a proxy that is started anew takes the next port, and the one that people were told is dead."""
    proxy = load(POSTGRES)["services"]["proxy"]
    first, last = re.search(r":([0-9]+)-([0-9]+):", resolved(proxy["ports"][0])).groups()
    assert int(last) - int(first) + 1 == proxy["scale"] == 2


def test_nothing_starts_before_what_it_cannot_do_without():
    base, overlay = load(BASE)["services"], load(POSTGRES)["services"]
    for name in ("auth", "admin", "proxy"):
        assert base[name]["depends_on"]["init"] == {"condition": "service_completed_successfully"}
    for name in ("init", "auth", "admin"):
        assert overlay[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert overlay["postgres"]["depends_on"]["postgres-password"] == {"condition": "service_completed_successfully"}
