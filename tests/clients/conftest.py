"""Installations for the tests of the command line, and two ways to run a command in them: as a process, and in this one."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

import pytest

from clients.cli.app import run
from tests.suite.stack import Stack


class Installation(Stack):
    """`gateway` runs a command in this process, which is ten times as fast; `process` runs it as people do."""

    first: dict[str, Any]
    """The first secrets, as `init --json` told them."""

    process = Stack.gateway

    def gateway(self, *arguments: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        mask = os.umask(0o022)
        try:
            with (
                mock.patch.dict(os.environ, self.environment, clear=True),
                mock.patch("sys.stdin", io.StringIO(stdin or "")),
                redirect_stdout(out),
                redirect_stderr(err),
            ):
                code = run(arguments)
        finally:
            os.umask(mask)
        done = subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
        assert not check or code == 0, f"gateway {arguments}: {code}\n{done.stdout}\n{done.stderr}"
        return done

    def answer(self, *arguments: str, stdin: str | None = None) -> Any:
        """What a command answers with `--json`."""
        return json.loads(self.gateway(*arguments, "--json", stdin=stdin).stdout)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Initialised, with admin running."""
    with Installation(tmp_path_factory.mktemp("installation"), "") as stack:
        stack.first = json.loads(stack.process("init", "--json").stdout)
        stack.start("admin")
        yield stack


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Nothing but settings: no data directory yet, no process."""
    with Installation(tmp_path_factory.mktemp("fresh"), "") as stack:
        yield stack
