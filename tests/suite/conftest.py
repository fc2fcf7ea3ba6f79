"""The installation that the tests of this folder share, and one of their own for those that break it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.suite.audit import Prices
from tests.suite.stack import ProviderProcess, Stack, configuration, price, wait_for
from tests.support.postgres import shared_server

RATES = Prices(input="1.00", output="2.00")
CENT = Prices(per_request="0.01")
PRICED = [
    "gpt-test",
    *(
        f"mock-{name}"
        for name in ("plain", "cut", "no-usage", "usage-negative", "usage-dear", "usage-partial", "echo", "echo-error")
    ),
]
PRICED += [f"mock-status-{code}" for code in (400, 401, 429, 500)]


def toml(base_url: str, prices: str = "") -> str:
    """The scripted provider for `gpt-test`, `mock-*` and `cent`; a call of `cent` costs $0.01 whatever it is.

    prices: further rows of `[[prices]]`.
    """
    rates = {"input": RATES.input, "output": RATES.output}
    rows = [price(model, **rates) for model in PRICED]
    rows.append(price("cent", input="0", output="0", per_request=CENT.per_request))
    rows.append(price("tenth", input="0", output="100.00"))
    return configuration(base_url, models="gpt-test,mock-*,cent,tenth,unpriced", prices="".join(rows) + prices)


@dataclass
class Installation:
    """A running suite and the provider behind it."""

    stack: Stack
    provider: ProviderProcess
    _names: Iterator[int]

    def token(self, **columns: object) -> str:
        """A new client token, inserted by hand; its name is its secret."""
        secret = f"hand-inserted-token-{next(self._names):06d}-of-the-tests"
        self.stack.insert_token(secret, **columns)
        return secret

    def row(self, token: str) -> dict[str, object]:
        """The database's row of a token that `token` made."""
        [row] = self.stack.query("SELECT * FROM client_tokens WHERE name = ?", token)
        return row

    def calls(self, token: str) -> list[dict[str, object]]:
        """The rows of its calls, the oldest first, as soon as all of them have been reported."""
        wait_for("its calls are reported", lambda: self.row(token)["open_calls"] == 0, seconds=10)
        return self.stack.query("SELECT * FROM requests WHERE token_id = ? ORDER BY request_id", self.row(token)["id"])


ADMIN_PASSWORD = "correct horse battery staple"


def install(
    directory: Path,
    made: Path,
    *services: str,
    replicas: int = 1,
    ready: bool = True,
    is_forked: bool = False,
    lease: float | None = None,
    prices: str = "",
    **settings: str,
) -> Iterator[Installation]:
    """Starts the services in a copy of what `gateway init` made; ends everything when the generator does.

    ready: whether to wait until the edges take calls. is_forked, lease: as `Stack` tells.
    prices: rows of `[[prices]]` beside those of `toml`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copytree(made, directory / "data")
    provider = ProviderProcess(directory)
    try:
        config = toml(provider.base_url, prices)
        with Stack(directory, config, settings, replicas=replicas, is_forked=is_forked, lease=lease) as stack:
            stack.start(*services)
            if ready:
                stack.wait_until_ready()
            yield Installation(stack, provider, itertools.count(1))
    finally:
        provider.close()


def initialised(directory: Path, **settings: str) -> Path:
    """Runs `gateway init` in a folder, and gives the data directory that it made."""
    directory.mkdir(parents=True, exist_ok=True)
    with Stack(directory, toml("http://127.0.0.1:9/v1"), {"GATEWAY_ADMIN_PASSWORD": ADMIN_PASSWORD} | settings) as stack:
        stack.gateway("init")
    return directory / "data"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory as `gateway init` leaves it."""
    return initialised(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Iterator[Installation]:
    """auth, admin and proxy, shared by all tests that leave them running."""
    yield from install(tmp_path_factory.mktemp("suite"), made, "auth", "admin", "proxy")


Installer = Callable[..., Installation]


@pytest.fixture
def fresh(tmp_path: Path, made: Path) -> Iterator[Installer]:
    """Makes installations that a test may break: `fresh("auth", "proxy", GATEWAY_DRAIN="1")`."""
    running: list[Iterator[Installation]] = []

    def make(*services: str, **options: Any) -> Installation:
        generator = install(tmp_path / f"installation-{len(running)}", made, *services, **options)
        running.append(generator)
        return next(generator)

    yield make
    for generator in running:
        next(generator, None)


@pytest.fixture(scope="session")
def made_postgres(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The data directory as `gateway init` leaves it where the database is a PostgreSQL one, and the name of that database."""
    directory, url = tmp_path_factory.mktemp("made-postgres"), shared_server().create()
    return initialised(directory, GATEWAY_DATABASE_URL=url), url.rpartition("/")[2]


@pytest.fixture
def postgres(tmp_path: Path, made_postgres: tuple[Path, str]) -> Iterator[Installer]:
    """Makes installations over PostgreSQL that a test may break."""
    made, template = made_postgres
    running: list[tuple[Iterator[Installation], str]] = []

    def make(*services: str, **options: Any) -> Installation:
        url = shared_server().create(template)
        options.setdefault("GATEWAY_DATABASE_URL", url)
        generator = install(tmp_path / f"installation-{len(running)}", made, *services, **options)
        running.append((generator, url))
        return next(generator)

    yield make
    for generator, url in running:
        next(generator, None)
        shared_server().drop(url)
