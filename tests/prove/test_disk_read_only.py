"""C12: a disk that turns read-only is as a full one; one that is so at the start is told in one line, at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.prove.site import Site
from tests.prove.test_disk_full import AWAY, NO_OUTBOX, fails_and_heals, is_sound
from tests.suite.conftest import CENT
from tests.support.disks import read_only, turned_read_only
from tests.support.postgres import shared_server

BOOT = 5.0  # seconds


class Turned:
    """Something that is entered and left by two functions, for `fails_and_heals`."""

    def __init__(self, what: contextlib.AbstractContextManager[None]) -> None:
        self._what = what
        self._inside = contextlib.ExitStack()

    def begin(self) -> None:
        self._inside.enter_context(self._what)

    def end(self) -> None:
        self._inside.close()


def pids(site: Site, service: str) -> list[int]:
    return [site.stack.processes[name].pid for name in site.all_of(service)]


@contextlib.contextmanager
def read_only_server() -> Iterator[None]:
    """PostgreSQL refuses every transaction that writes, as hosted ones do whose disk is full or that are being replaced."""

    def tell(value: str) -> None:
        with psycopg.connect(shared_server().url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")

    tell("on")
    try:
        yield
    finally:
        with psycopg.connect(shared_server().url("postgres"), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")


@pytest.mark.proves("C12")
async def test_a_database_that_turns_read_only_refuses_new_calls_and_heals(site, proof, database, tmp_path):
    site = site("auth", "proxy", GATEWAY_OUTBOX_DIR=str(tmp_path / "outbox"))
    files = [site.stack.data / f"gateway.db{end}" for end in ("", "-wal", "-shm")]
    turned = Turned(turned_read_only(pids(site, "auth"), files) if database == "sqlite" else read_only_server())
    try:
        told, ran = await fails_and_heals(site, proof, turned.begin, turned.end, AWAY)
    finally:
        turned.end()
    site.settle(CENT, [*told, *ran])
    if database == "sqlite":
        is_sound(site, proof)


@pytest.mark.proves("C12")
async def test_an_outbox_that_turns_read_only_refuses_new_calls_and_heals(site, proof):
    site = site("auth", "proxy")
    stems = [path.stem for path in (site.stack.data / "outbox").glob("*.log")]
    names = [f"{stem}.log" for stem in stems] + [f".probe-{stem}.new" for stem in stems]
    names += [f".{stem}.{number}.log.new" for stem in stems for number in (1, 2, 3)]
    files = [site.stack.data / "outbox" / name for name in names]
    turned = Turned(turned_read_only(pids(site, "proxy"), files, opens=True))
    try:
        told, ran = await fails_and_heals(site, proof, turned.begin, turned.end, NO_OUTBOX)
    finally:
        turned.end()
    site.settle(CENT, [*told, *ran])


@pytest.mark.proves("C12")
def test_a_disk_that_is_read_only_at_the_start_ends_it_with_one_clear_line(site, proof, database, tmp_path):
    outbox = tmp_path / "outbox"
    outbox.mkdir(mode=0o700)
    site = site(ready=False, GATEWAY_OUTBOX_DIR=str(outbox))
    with read_only(outbox):
        judge_start(site, proof, "proxy", "the outbox's disk", str(outbox))
    if database == "sqlite":
        with read_only(site.stack.data):
            for service in ("auth", "admin"):
                judge_start(site, proof, service, "the database's disk", str(site.stack.data))
    site.stack.start(*site.all_of("auth"), *site.all_of("proxy"))
    site.stack.wait_until_ready(60)


def judge_start(site: Site, proof, service: str, what: str, names: str) -> None:
    """Starts a service that is expected to end by itself, and puts into the proof how it does."""
    started = time.monotonic()
    site.stack.start(service)
    process = site.stack.processes[service]
    while process.poll() is None and time.monotonic() - started < 6 * BOOT:
        time.sleep(0.02)
    seconds, code = time.monotonic() - started, process.poll()
    if code is None:
        site.stack.kill(service)
    site.stack.processes.pop(service, None)
    lines = sorted(site.stack.logs.iterdir(), key=lambda path: path.stat().st_mtime)[-1].read_text().splitlines()
    proof.holds(f"{service}, {what} read-only at the start: exit code", code, "not 0", code not in {None, 0})
    proof.within(f"{service}: until it has ended", seconds, BOOT)
    proof.equals(f"{service}: lines that it says", len(lines), 1)
    line = lines[-1] if lines else "nothing"
    proof.holds(f"{service}: the line", line[:300], "names the place, says that it cannot be written to",
        names in line and ("read-only" in line.lower() or "written" in line))  # fmt: skip
