"""Both databases for one test: whoever asks for `database_url` is run on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import shared_server

BOTH = ("sqlite", "postgresql")


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/gateway.db"
        return
    url = shared_server().create()
    yield url
    shared_server().drop(url)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """The URL of an empty PostgreSQL database of the test's own."""
    url = shared_server().create()
    yield url
    shared_server().drop(url)


@pytest.fixture(scope="session", autouse=True)
def postgres_server_stops() -> Iterator[None]:
    """Stops the server of this test process, if a test has started it."""
    yield
    if shared_server.cache_info().currsize:
        shared_server().close()
