"""The installation that the tests of this folder share, and one of their own for those that break it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.suite.audit import Prices
from tests.suite.stack import ProviderProcess, Stack, configuration, price, wait_for

RATES = Prices(input="1.00", output="2.00")
CENT = Prices(per_request="0.01")
PRICED = ["gpt-test", *(f"mock-{name}" for name in ("plain", "cut", "no-usage", "usage-negative", "echo", "echo-error"))]
PRICED += [f"mock-status-{code}" for code in (400, 401, 429, 500)]


def toml(base_url: str) -> str:
    """The scripted provider for `gpt-test`, `mock-*` and `cent`; a call of `cent` costs $0.01 whatever it is."""
    rates = {"input": RATES.input, "output": RATES.output}
    rows = [price(model, **rates) for model in PRICED]
    rows.append(price("cent", input="0", output="0", per_request=CENT.per_request))
    rows.append(price("tenth", input="0", output="100.00"))
    return configuration(base_url, models="gpt-test,mock-*,cent,tenth,unpriced", prices="".join(rows))


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


def install(directory: Path, *services: str, **settings: str) -> Iterator[Installation]:
    """Starts the services in a new installation; ends everything when the generator does."""
    directory.mkdir(exist_ok=True)
    provider = ProviderProcess(directory)
    try:
        with Stack(directory, toml(provider.base_url), settings) as stack:
            stack.gateway("init")
            stack.start(*services)
            stack.wait_until_ready()
            yield Installation(stack, provider, itertools.count(1))
    finally:
        provider.close()


ADMIN_PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """auth, admin and proxy, shared by all tests that leave them running."""
    directory = tmp_path_factory.mktemp("suite")
    yield from install(directory, "auth", "admin", "proxy", GATEWAY_ADMIN_PASSWORD=ADMIN_PASSWORD)


Installer = Callable[..., Installation]


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Installer]:
    """Makes installations that a test may break: `fresh("auth", "proxy", GATEWAY_DRAIN="1")`."""
    running: list[Iterator[Installation]] = []

    def make(*services: str, **settings: str) -> Installation:
        generator = install(tmp_path / f"installation-{len(running)}", *services, **settings)
        running.append(generator)
        return next(generator)

    yield make
    for generator in running:
        next(generator, None)
