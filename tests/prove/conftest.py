"""Runs the rows: a proof for each test, installations on each database, and a record of each figure for the report."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.prove.proof import FULL, SEED, Proof
from tests.prove.register import BOTH, ROWS
from tests.prove.site import Site
from tests.suite import forked
from tests.suite.conftest import (  # noqa: F401 - the fixtures
    Installation,
    fresh,
    initialised,
    install,
    made,
    made_postgres,
    postgres,
)
from tests.support.postgres import PostgresServer

RECORD = os.environ.get("GATEWAY_TEST_RECORD")  # a file for one line of JSON a test, which the report is made from
ONLY = [row for row in os.environ.get("GATEWAY_TEST_ROWS", "").split(",") if row]  # the rows to run; none: all
DATABASES = [one for one in os.environ.get("GATEWAY_TEST_DATABASES", "").split(",") if one] or list(BOTH)
TENTH = 600  # seconds that a tenth may take, beside other tests; in full, the command line has the limit
_PROOF = pytest.StashKey[Proof]()


def _row_of(item: pytest.Item) -> str:
    mark = item.get_closest_marker("proves")
    assert mark is not None, f"{item.nodeid} proves no row: mark it with @pytest.mark.proves(...)"
    (row,) = mark.args
    assert row in ROWS, f"{row} is no row of the register"
    return str(row)


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Proof:
    """Where the test puts its figures; it fails at its end if one is not as expected."""
    case = request.node.name.partition("[")[2].rstrip("]")
    proof = Proof(_row_of(request.node), case, random.Random(f"{SEED} {request.node.name}"))
    request.node.stash[_PROOF] = proof
    return proof


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that wants `database` or `site` runs on every database of its row."""
    mark = metafunc.definition.get_closest_marker("proves")
    if mark is not None and "database" in metafunc.fixturenames:
        metafunc.parametrize("database", [one for one in ROWS[mark.args[0]].databases if one in DATABASES])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the rows that were asked for, and orders them as the register does."""
    here = [item for item in items if item.get_closest_marker("proves")]
    for item in here:
        if not FULL and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TENTH))
    wanted = [row for row in ONLY or ROWS if set(ROWS[row].databases) & set(DATABASES)]
    others = [item for item in here if _row_of(item) not in wanted]
    items[:] = [item for item in items if item not in others]
    if RECORD:
        items.sort(key=lambda item: list(ROWS).index(_row_of(item)) if item in here else -1)


@pytest.fixture
def site(request: pytest.FixtureRequest, database: str, proof: Proof) -> Callable[..., Site]:
    """Makes installations on the row's database: `site("auth", "proxy")`. On PostgreSQL there are two of each of these.

    has_own_server=True: over a PostgreSQL server that the test may break, as `Site.server`.
    """
    make = request.getfixturevalue({"sqlite": "fresh", "postgres": "postgres"}[database])
    replicas = 2 if database == "postgres" else 1

    def start(*services: str, has_own_server: bool = False, **options: object) -> Site:
        names = [name for service in services for name in Site.names(service, replicas)]
        own = request.getfixturevalue("own_server") if has_own_server and database == "postgres" else None
        if own:
            return Site(own(*names, replicas=replicas, **options), proof, replicas, own.server)
        return Site(make(*names, replicas=replicas, **options), proof, replicas)

    return start


class _OwnServer:
    """Makes installations over one PostgreSQL server that waits for the disk, as a real one does."""

    def __init__(self, folder: Path) -> None:
        self.server = PostgresServer(synced=True)
        self._folder = folder
        self._running: list[Iterator[Installation]] = []

    def __call__(self, *services: str, **options: Any) -> Installation:
        url, folder = self.server.create(), self._folder / f"own-server-{len(self._running)}"
        data = initialised(folder / "made", GATEWAY_DATABASE_URL=url)
        self._running.append(install(folder / "installation", data, *services, GATEWAY_DATABASE_URL=url, **options))
        return next(self._running[-1])

    def close(self) -> None:
        for running in self._running:
            next(running, None)
        self.server.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[_OwnServer]:
    """For tests that break the server itself: the others share one."""
    own = _OwnServer(tmp_path)
    yield own
    own.close()


@pytest.fixture(scope="session", autouse=True)
def forks_end() -> Iterator[None]:
    """Ends the process that forks services, when no test needs it any more."""
    yield
    forked.close()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """The verdict, as part of the test itself."""
    result = yield
    if _PROOF in pyfuncitem.stash:
        pyfuncitem.stash[_PROOF].verdict()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Writes down what a test found as soon as it is over: nothing is lost when the run is stopped."""
    report = yield
    if RECORD and (report.when == "call" or report.outcome != "passed"):
        proof = item.stash.get(_PROOF, None)
        line = {
            "row": _row_of(item),
            "test": item.nodeid,
            "case": proof.case if proof else item.name.partition("[")[2].rstrip("]"),
            "outcome": report.outcome,
            "minutes": round(call.duration / 60, 2),
            "figures": [vars(figure) for figure in proof.figures] if proof else [],
            "fault": str(report.longrepr[2] if report.outcome == "skipped" else report.longrepr or ""),
        }
        with Path(RECORD).open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")
    return report
