"""Which way imports point, as a table, and that each module stands by itself."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
STDLIB = sys.stdlib_module_names
GRPC = {"grpc", "grpc_health", "grpc_reflection", "google"}


@dataclass(frozen=True)
class Area:
    """What the modules of one folder may import. own: our packages by prefix; `gateway` alone means the domain files."""

    own: set[str]
    others: set[str]


AREAS = {
    "gateway": Area(own={"gateway"}, others=set()),
    "gateway.storage": Area(
        own={"gateway", "gateway.storage"}, others={"peewee", "playhouse", "psycopg", "genai_prices", "argon2"}
    ),
    "gateway.rpc": Area(
        own={"gateway", "gateway.rpc", "gateway.process", "gateway.stubs"}, others=GRPC | {"cryptography", "structlog"}
    ),
    "gateway.client": Area(own={"gateway", "gateway.client", "gateway.rpc", "gateway.stubs"}, others={"grpc", "google"}),
    "gateway.client.aiohttp_guard": Area(own={"gateway", "gateway.client"}, others={"aiohttp"}),
    "gateway.process": Area(
        own={"gateway", "gateway.process"},
        others={"structlog", "pydantic", "pydantic_core", "prometheus_client", "grpc", "cryptography"},
    ),
    "services.auth": Area(
        own={"gateway", "gateway.rpc", "gateway.process", "gateway.storage", "gateway.stubs", "services.auth"},
        others=GRPC | {"structlog", "prometheus_client"},
    ),
    "services.admin": Area(
        own={"gateway", "gateway.rpc", "gateway.process", "gateway.storage", "gateway.stubs", "services.admin"},
        others=GRPC | {"structlog", "prometheus_client"},
    ),
    "services.proxy": Area(
        own={"gateway", "gateway.rpc", "gateway.process", "gateway.stubs", "services.proxy"},
        others=GRPC | {"aiohttp", "multidict", "yarl", "msgspec", "structlog", "prometheus_client", "uvloop", "pydantic"},
    ),
    "services.demo": Area(own={"gateway", "gateway.process", "services.demo"}, others={"aiohttp", "structlog", "uvloop"}),
    "clients.cli": Area(
        own={"gateway", "gateway.rpc", "gateway.process", "gateway.stubs", "clients.cli"},
        others=GRPC | {"cryptography", "cyclopts", "rich"},
    ),
}
HOST_COMMANDS = {
    "clients.cli.host",
    "clients.cli.init",
    "clients.cli.first",
    "clients.cli.database_inspection",
    "clients.cli.backup",
    "clients.cli.repricing",
}  # these alone open the database


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    """Every module of ours that is not generated, by name."""
    paths = [path for top in ("gateway", "services", "clients") for path in (REPOSITORY / top).rglob("*.py")]
    return {module_name(path): path for path in sorted(paths) if "stubs" not in path.parts}


def imports(name: str, path: Path) -> set[str]:
    """The full names that a module imports, wherever in it: `from a.b import c` gives `a.b.c`."""
    found: set[str] = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def area_of(name: str) -> str:
    """The most exact row of the table for a module; a package that only holds others has none."""
    rows = [row for row in AREAS if name == row or name.startswith(row + ".")]
    return max(rows, key=len, default="")


def own_area(imported: str) -> str:
    """The area of one of our names: `gateway.quota.admit` is of `gateway`, `gateway.storage.ledger` of `gateway.storage`."""
    parts = imported.split(".")
    if parts[0] == "gateway" and parts[1:2] and parts[1] in {"storage", "rpc", "process", "stubs", "client"}:
        return f"gateway.{parts[1]}"
    return "gateway" if imported.split(".", maxsplit=1)[0] == "gateway" else ".".join(imported.split(".")[:2])


@pytest.mark.parametrize("name", modules())
def test_imports_point_the_way_that_the_table_says(name: str):
    path = modules()[name]
    area = area_of(name)
    assert area or name in {"services", "clients"}, f"{name} has no row in the table of areas"
    if not area:
        assert imports(name, path) <= {"os"}
        return
    allowed = AREAS[area]
    storage = {"gateway.storage"} if name in HOST_COMMANDS else set()
    for imported in imports(name, path):
        top = imported.split(".")[0]
        if top in {"gateway", "services", "clients", "tests", "benchmarks"}:
            assert own_area(imported) in allowed.own | storage, f"{name} must not import {imported}"
        elif top not in STDLIB:
            assert top in allowed.others, f"{name} must not import {imported}"


ALONE = """
import importlib, json, os, sys
import aiohttp, cryptography.x509, cyclopts, google.protobuf, grpc
import peewee, prometheus_client, pydantic, rich, structlog
failed = {}
for name in json.load(sys.stdin):
    read, write = os.pipe()
    if os.fork() == 0:  # nothing of ours is imported yet in the parent, so each child starts fresh
        try:
            importlib.import_module(name)
        except BaseException as error:
            os.write(write, repr(error).encode()[:2000])
        os._exit(0)
    os.close(write)
    os.wait()
    with os.fdopen(read) as pipe:
        if problem := pipe.read():
            failed[name] = problem
print(json.dumps(failed))
"""


def test_each_module_can_be_imported_alone():
    names = [name for name in modules() if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE], input=json.dumps(names), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {}


def test_the_proxy_does_not_load_the_database_nor_the_price_table():
    unwanted = ("peewee", "gateway.storage", "genai_prices")
    code = f"import services.proxy.__main__, sys; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_says_what_it_is():
    for name, path in modules().items():
        if path.name == "__init__.py":
            said = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert len(said) > 40, f"{name}: say what it is and what its neighbours own"


def test_no_file_of_ours_is_too_long_to_read():
    code = [
        path for top in ("gateway", "services", "clients", "tests", "benchmarks") for path in (REPOSITORY / top).rglob("*.py")
    ]
    long = {
        str(path): lines for path in code if "stubs" not in path.parts and (lines := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_each_task_that_loops_for_ever_survives_a_fault_of_one_round() -> None:
    """A beat or a sync that ends with an exception is missed by nobody until calls lose their holds."""
    unguarded = []
    for name, path in modules().items():
        if not name.startswith("services."):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith(("_keep_", "watch", "_run")):
                loops = any(isinstance(inner, ast.While) for inner in ast.walk(node))
                guarded = any(isinstance(mark, ast.Name) and mark.id == "survives" for mark in node.decorator_list)
                if loops and not guarded:
                    unguarded.append(f"{name}.{node.name}")
    assert unguarded == [], "decorate these with gateway.process.tasks.survives"
