"""The documentation names all that a user can set, meet or call. `python -m tests.test_docs` prints its tables for pasting."""

from __future__ import annotations

import re
from pathlib import Path

from cyclopts import App
from google.protobuf.descriptor import ServiceDescriptor

from clients.cli.app import build
from gateway import errors
from gateway.http_errors import TABLE
from gateway.process.settings import list_settings
from gateway.process.settings_tables import ModelSettings, PriceSettings, ProviderSettings, TargetSettings
from gateway.rpc.status import code_of
from gateway.stubs.admin.v1 import adjustments_pb2, audit_pb2, prices_pb2, requests_pb2, sessions_pb2, tokens_pb2, usage_pb2
from gateway.stubs.auth.v1 import auth_pb2
from services.admin.access import ACCESS as ADMIN_ACCESS
from services.auth.access import ACCESS as AUTH_ACCESS

DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLES = {"providers": ProviderSettings, "prices": PriceSettings, "models": ModelSettings, "targets": TargetSettings}


def read(name: str) -> str:
    return (DOCS / name).read_text()


def settings_rows() -> list[str]:
    """The table of settings, as docs/configuration.md has it."""
    return [
        f"| `{setting.variable}`{', `' + setting.file_variable + '`' if setting.file_variable else ''} | `{setting.default}` "
        f"| {setting.doc} |"
        for setting in list_settings()
    ]


def table_rows(name: str) -> list[str]:
    """The keys of one table of gateway.toml, as docs/configuration.md has them."""
    return [f"| `{key}` | {field.description} |" for key, field in TABLES[name].model_fields.items()]


def every_error() -> list[type[errors.GatewayError]]:
    found, waiting = [], [errors.GatewayError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    own = [kind for kind in found if kind.__module__ == "gateway.errors"]
    return sorted({kind.reason: kind for kind in own}.values(), key=lambda kind: list(vars(errors).values()).index(kind))


def error_row(kind: type[errors.GatewayError]) -> str:
    """The start of a reason's row in docs/errors.md; what to do follows."""
    row = TABLE[kind.reason]
    return f"| `{kind.reason}` | `{code_of(kind('')).name}` | {row.status} | `{row.code}` |"


def services() -> list[ServiceDescriptor]:
    files = (auth_pb2, sessions_pb2, tokens_pb2, requests_pb2, audit_pb2, adjustments_pb2, prices_pb2, usage_pb2)
    return [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]


def commands(app: App, words: tuple[str, ...] = ()) -> list[str]:
    """Every command as it is typed, such as `gateway token create`."""
    found = []
    for name in app:
        if name.startswith("-"):
            continue
        below = app[name]
        path = (*words, name)
        found += [" ".join(("gateway", *path)), *commands(below, path)]
    return found


def test_each_setting_is_documented_with_its_default_and_meaning():
    text = read("configuration.md")
    assert [row for row in settings_rows() if row not in text] == []


def test_no_setting_is_documented_that_is_not_there():
    known = {name for setting in list_settings() for name in (setting.variable, setting.file_variable)}
    mentioned = set(re.findall(r"`(GATEWAY_[A-Z_]+)`", read("configuration.md") + (DOCS.parent / "README.md").read_text()))
    assert mentioned <= known


def test_each_key_of_the_tables_is_documented():
    text = read("configuration.md")
    assert [row for name in TABLES for row in table_rows(name) if row not in text] == []


def test_each_error_has_its_row_with_grpc_code_http_status_and_code():
    text = read("errors.md")
    assert [row for row in map(error_row, every_error()) if row not in text] == []


def test_each_denial_reason_has_an_error_of_that_name():
    reasons = {name.removeprefix("DENIAL_REASON_") for name in auth_pb2.DenialReason.keys()}  # noqa: SIM118 - no dict, and it does not iterate
    reasons -= {"UNSPECIFIED"}
    assert reasons <= {kind.reason for kind in every_error()}
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in read("errors.md")] == []


def test_each_rpc_is_documented_with_who_may_call_it():
    lines = read("grpc.md").splitlines()
    missing = []
    for service in services():
        for method in service.methods:
            rule = (AUTH_ACCESS | ADMIN_ACCESS)[f"/{service.full_name}/{method.name}"]
            said = [line for line in lines if line.startswith(f"| `{method.name}` |")]
            if not said or not all(f"`{name}`" in said[0] for name in rule.identities):
                missing.append(f"{service.full_name}/{method.name}")
    assert missing == []


def test_each_command_is_documented():
    text = read("cli.md")
    assert [command for command in commands(build()) if f"`{command}" not in text] == []


def test_links_between_documents_lead_somewhere():
    broken = []
    for path in [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            if not (path.parent / target).exists():
                broken.append(f"{path.name}: {target}")
    assert broken == []


def test_the_files_that_the_architecture_names_are_there():
    names = set(re.findall(r"`([a-z_/0-9]+\.py)`", read("architecture.md")))
    files = {
        str(path.relative_to(DOCS.parent))
        for top in ("gateway", "services", "tests")
        for path in (DOCS.parent / top).rglob("*.py")
    }
    assert [name for name in sorted(names) if not any(file == name or file.endswith("/" + name) for file in files)] == []


if __name__ == "__main__":
    print("\n".join([*settings_rows(), "", *(row for name in TABLES for row in [name, *table_rows(name)])]))
    print("\n".join(map(error_row, every_error())))
    print("\n".join(commands(build())))


def test_decisions_are_numbered_without_a_gap():
    assert [int(path.name[:4]) for path in sorted((DOCS / "adr").glob("*.md"))] == list(
        range(1, len(list((DOCS / "adr").glob("*.md"))) + 1)
    )
