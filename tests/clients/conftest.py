"""One installation whose admin service runs, for the tests of the commands that ask it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.suite.stack import Stack


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Initialised, with admin running. The first secrets stand in `.first`."""
    with Stack(tmp_path_factory.mktemp("installation"), "") as stack:
        stack.first = json.loads(stack.gateway("init", "--json").stdout)  # type: ignore[attr-defined]
        stack.start("admin")
        yield stack


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nothing but settings: no data directory yet, no process."""
    with Stack(tmp_path_factory.mktemp("fresh"), "") as stack:
        yield stack


def answer(stack: Stack, *arguments: str, stdin: str | None = None) -> Any:
    """What a command answers with `--json`."""
    return json.loads(stack.gateway(*arguments, "--json", stdin=stdin).stdout)
