"""A database of the release before comes to this one's schema whole, whoever is killed on the way and however many try."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from playhouse.migrations import Runner

from gateway.storage import migrate as migrations
from gateway.storage.database import Database, connect
from gateway.storage.migrate import migrate, pending
from gateway.storage.reconcile import reconcile

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST = "0001_ledger"
DAY = "2026-01-0{}"
SUMS = (
    "SELECT COUNT(*), SUM(total_spent_nanos), SUM(period_spent_nanos), SUM(held_nanos), SUM(opening_nanos) FROM client_tokens",
    "SELECT state, COUNT(*), SUM(cost_nanos), SUM(held_nanos), SUM(input_tokens) FROM requests GROUP BY state ORDER BY state",
    "SELECT COUNT(*), SUM(cost_nanos), SUM(requests), SUM(input_tokens + output_tokens) FROM daily_totals",
    "SELECT COUNT(*), SUM(amount_nanos) FROM adjustments",
    "SELECT COUNT(*), MIN(request_id), MAX(created_at) FROM operations",
)

# In a process of its own, which loads everything once: each child migrates a copy and is killed before its nth statement.
KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
from gateway.storage.database import connect
from gateway.storage.migrate import migrate

source, folder = sys.argv[1], Path(sys.argv[2])
codes = []
while not codes or codes[-1]:
    copy = folder / f"killed-{len(codes) + 1}.db"
    if source != "-":
        shutil.copyfile(source, copy)
    child = os.fork()
    if child == 0:
        left = len(codes) + 1
        def before(statement):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        db = connect(f"sqlite:///{copy}")
        db.connection().set_trace_callback(before)
        migrate(db)
        os._exit(0)
    codes.append(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""

# The same, in one database: each child is killed before its nth statement, until one gets through.
KILLED_ON_POSTGRESQL = """
import json, os, signal, sys
import peewee
from gateway.storage.database import connect
from gateway.storage.migrate import migrate, pending

codes = []
execute = peewee.Database.execute_sql
while not codes or codes[-1]:
    child = os.fork()
    if child == 0:
        left = len(codes) + 1
        def counted(self, *arguments, **options):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return execute(self, *arguments, **options)
        peewee.Database.execute_sql = counted
        migrate(connect(sys.argv[1], busy_timeout=10.0))
        os._exit(0)
    codes.append(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""


def fill(db: Database) -> None:
    """Rows as the first release wrote them: tokens with calls in every state, and books that add up."""
    with db.write():
        for token in range(1, 21):
            spent = sum(cost(token, call) for call in range(10))
            db.run(
                "INSERT INTO client_tokens (id, name, token_hash, max_amount_nanos, opening_nanos, total_spent_nanos,"
                " period_spent_nanos, held_nanos, open_calls, prompt_tokens, completion_tokens, total_tokens, request_count)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (token, f"t{token}", f"hash-{token}", 10**12, 7, 7 + spent, 7 + spent, 40 + token, 1, 30, 60, 90, 6),
            )
            for call in range(10):
                state = ("settled", "settled", "settled", "released", "expired")[call % 5] if call != 9 else "admitted"
                held = 40 + token if state == "admitted" else 10**6
                digest = "d" if state in {"settled", "released"} else None
                db.run(
                    "INSERT INTO requests (request_id, token_id, identity, state, request_model, admitted_at, held_nanos,"
                    " cost_nanos, input_tokens, output_tokens, report_digest) VALUES (?, ?, 'proxy', ?, 'm', ?, ?, ?, ?, ?, ?)",
                    (f"r-{token}-{call}", token, state, DAY.format(call % 3 + 1), held, cost(token, call), 5, 10, digest),
                )
            for day in range(3):
                total = sum(cost(token, call) for call in range(10) if call % 3 == day)
                db.run(
                    "INSERT INTO daily_totals (token_id, day, model, requests, input_tokens, output_tokens, cost_nanos)"
                    " VALUES (?, ?, 'm', 2, 10, 20, ?)",
                    (token, DAY.format(day + 1), total),
                )
            db.run(
                "INSERT INTO operations (request_id, rpc, digest, token_id, created_at) VALUES (?, 'CreateToken', '', ?, ?)",
                (f"o-{token}", token, DAY.format(1)),
            )


def cost(token: int, call: int) -> int:
    """Nano-dollars with odd figures, 0 for what was released or is open."""
    return 0 if call in {3, 8, 9} else token * 1_000_003 + call * 17


def sums(db: Database) -> list[list[tuple[object, ...]]]:
    return [db.query(sql) for sql in SUMS]


def make_old(url: str) -> None:
    """Makes the schema and the rows of the first release."""
    db = connect(url)
    with db.write():
        Runner(db, str(migrations._DIRECTORY)).up(FIRST)
    fill(db)
    assert reconcile(db) == []
    db.close()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A SQLite database of the first release."""
    make_old(f"sqlite:///{tmp_path}/old.db")
    return tmp_path / "old.db"


def test_the_sums_are_the_same_to_the_nano_dollar_after_the_upgrade(database_url: str):
    make_old(database_url)
    db = connect(database_url)
    before = sums(db)
    assert migrate(db) == pending_after(FIRST)
    assert sums(db) == before
    assert reconcile(db) == []
    assert migrate(db) == pending(db) == []
    db.close()


@pytest.mark.parametrize("start", ["from nothing", "from the first release"])
def test_whoever_is_killed_at_any_statement_leaves_what_the_next_one_finishes(old: Path, tmp_path: Path, start: str):
    source = "-" if start == "from nothing" else str(old)
    folder = tmp_path / "copies"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, source, str(folder)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    codes = json.loads(done.stdout)
    assert set(codes[:-1]) == {9}
    assert len(codes) > (40 if start == "from nothing" else 5)
    origin = connect(f"sqlite:///{old}")
    expected = sums(origin) if start != "from nothing" else None
    origin.close()
    for number in range(1, len(codes) + 1):
        db = connect(f"sqlite:///{folder}/killed-{number}.db")
        assert db.query("PRAGMA integrity_check") == [("ok",)]
        assert pending(db) in ([], pending_after(FIRST), pending_after(""))  # all of a step or nothing of it
        migrate(db)
        assert pending(db) == []
        assert expected is None or sums(db) == expected
        assert reconcile(db) == []
        db.close()


def test_on_postgresql_too_a_kill_at_any_statement_leaves_what_the_next_one_finishes(postgres_url: str):
    make_old(postgres_url)
    db = connect(postgres_url)
    before = sums(db)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_ON_POSTGRESQL, postgres_url],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    codes = json.loads(done.stdout)
    assert set(codes[:-1]) == {9}
    assert len(codes) > 4
    assert pending(db) == []
    assert sums(db) == before
    assert reconcile(db) == []
    db.close()


def test_of_several_starters_at_once_one_migrates_and_all_go_on(database_url: str):
    make_old(database_url)
    code = (
        "import sys\nfrom gateway.storage.database import connect\nfrom gateway.storage.migrate import migrate\n"
        "db = connect(sys.argv[1], busy_timeout=10.0)\nprint('ready', flush=True)\nsys.stdin.read()\nprint(migrate(db))"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, database_url],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.close()
    told = []
    for starter in starters:
        assert starter.stdout is not None
        told.append(starter.stdout.read().strip())
        starter.stdout.close()
        assert starter.wait(30) == 0
    assert sorted(told) == sorted(["[]", "[]", str(pending_after(FIRST))])


@pytest.fixture(scope="module")
def of_the_future(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with all that the services need to start, and a database of a newer release."""
    data = tmp_path_factory.mktemp("future") / "data"
    subprocess.run(
        [sys.executable, "-m", "clients.cli", "init", "--no-secrets"],
        cwd=REPOSITORY,
        env=os.environ | {"GATEWAY_DATA_DIR": str(data)},
        capture_output=True,
        check=True,
    )
    db = connect(f"sqlite:///{data}/gateway.db")
    with db.write():
        db.run("INSERT INTO schema_migration (name, applied) VALUES ('0099_of_the_future', '2027-01-01 00:00:00')")
    db.close()
    return data


@pytest.mark.parametrize("command", ["services.auth", "services.admin", "clients.cli migrate", "clients.cli reconcile"])
def test_an_older_release_refuses_a_newer_database_in_one_line(of_the_future: Path, command: str):
    settings = os.environ | {"GATEWAY_DATA_DIR": str(of_the_future), "GATEWAY_LOG_FORMAT": "console"}
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=REPOSITORY, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "newer release (it has 0099_of_the_future)" in done.stderr


def pending_after(name: str) -> list[str]:
    """The migrations of this release that follow one."""
    names = sorted(path.stem for path in migrations._DIRECTORY.glob("[0-9]*.py"))
    return [each for each in names if each > name]
