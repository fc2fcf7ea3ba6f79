"""The supervisor, around small scripts: starts, restarts, order, giving up, and no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clients.cli import supervisor as rules

HOST = """
import os, sys
from clients.cli import supervisor
from clients.cli.supervisor import Command, Supervisor
folder, patience, order = sys.argv[1], float(sys.argv[2]), sys.argv[3].split(",")
commands = [Command(name, (sys.executable, os.path.join(folder, name + ".py"), folder, name)) for name in reversed(order)]
keeper = Supervisor(commands, stop_order=order, environ=os.environ, patience=patience)
with keeper.signals_taken():
    keeper.start()
    while not keeper.told_to_stop:
        keeper.turn(60)
    sys.exit(keeper.stop())
"""

CHILD = """
import os, signal, sys, time
folder, name = sys.argv[1:]
def note(word):
    with open(os.path.join(folder, "events"), "a") as file:
        file.write(f"{name} {word} {os.getpid()}\\n")
"""

OBEDIENT = (
    CHILD
    + """
def stop(*_):
    time.sleep(0.1)
    note("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
note("started")
while True:
    signal.pause()
"""
)

# Takes its time over the first signal; the second one cuts.
SLOW = (
    CHILD
    + """
def stop(*_):
    signal.signal(signal.SIGTERM, lambda *_: (note("cut"), os._exit(1)))
    note("draining")
    time.sleep(60)
signal.signal(signal.SIGTERM, stop)
note("started")
while True:
    signal.pause()
"""
)

STUBBORN = (
    CHILD
    + """
signal.signal(signal.SIGTERM, lambda *_: note("ignored"))
note("started")
while True:
    signal.pause()
"""
)

FAILING = (
    CHILD
    + """
note("started")
sys.exit(3)
"""
)


class Kept:
    """A supervisor in a process of its own, and what its children wrote down."""

    def __init__(self, folder: Path, scripts: dict[str, str], patience: float) -> None:
        self.folder = folder
        for name, script in scripts.items():
            (folder / f"{name}.py").write_text(script)
        host = folder / "host.py"
        host.write_text(textwrap.dedent(HOST))
        arguments = [sys.executable, str(host), str(folder), str(patience), ",".join(scripts)]
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)

    def events(self, word: str | None = None) -> list[tuple[str, str, int]]:
        path = self.folder / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [line.split() for line in lines]
        return [(name, what, int(pid)) for name, what, pid in rows if word in (None, what)]

    def wait_for(self, count: int, word: str, within: float = 20.0) -> list[tuple[str, str, int]]:
        deadline = time.monotonic() + within
        while len(found := self.events(word)) < count:
            assert time.monotonic() < deadline, f"no {count} x {word!r}, but {self.events()}"
            time.sleep(0.02)
        return found

    def end(self, within: float = 20.0) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=within)
        return self.process.returncode, errors


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[object]:
    kept: list[Kept] = []

    def start(scripts: dict[str, str], patience: float = 10.0) -> Kept:
        kept.append(Kept(tmp_path, scripts, patience))
        return kept[-1]

    yield start
    for each in kept:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until_gone(pid: int, within: float = 5.0) -> None:
    deadline = time.monotonic() + within
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_stops_in_order_and_waits_for_each(keep) -> None:
    kept = keep({"first": OBEDIENT, "second": OBEDIENT, "third": OBEDIENT})
    kept.wait_for(3, "started")
    kept.process.send_signal(signal.SIGTERM)
    code, _ = kept.end()
    assert code == 0
    assert [name for name, _, _ in kept.events("stopped")] == ["first", "second", "third"]


def test_ctrl_c_reaches_the_children_through_the_supervisor_alone(keep) -> None:
    kept = keep({"one": OBEDIENT})
    ((_, _, pid),) = kept.wait_for(1, "started")
    assert os.getpgid(pid) != os.getpgid(kept.process.pid)
    kept.process.send_signal(signal.SIGINT)
    assert kept.end()[0] == 0
    assert len(kept.events("stopped")) == 1


def test_a_killed_child_is_back_within_a_second(keep) -> None:
    kept = keep({"one": OBEDIENT, "other": OBEDIENT})
    pids = {name: pid for name, _, pid in kept.wait_for(2, "started")}
    killed_at = time.monotonic()
    os.kill(pids["one"], signal.SIGKILL)
    started = kept.wait_for(3, "started")
    assert time.monotonic() - killed_at < 1.5
    assert [name for name, _, _ in started].count("one") == 2
    assert alive(pids["other"])
    kept.process.send_signal(signal.SIGTERM)
    code, errors = kept.end()
    assert code == 0
    assert "SIGKILL" in errors


def test_gives_up_after_five_deaths_within_a_minute_and_stops_the_rest(keep) -> None:
    kept = keep({"sound": OBEDIENT, "failing": FAILING})
    code, errors = kept.end()
    assert code == 1
    assert len([name for name, _, _ in kept.events("started") if name == "failing"]) == 5
    assert [name for name, _, _ in kept.events("stopped")] == ["sound"]
    assert "giving_up" in errors


def test_deaths_that_are_spread_over_more_than_a_minute_do_not_count_together(monkeypatch, tmp_path: Path) -> None:
    now = [1000.0]
    monkeypatch.setattr(rules.time, "monotonic", lambda: now[0])
    # Here with threads around, where running code between fork and exec draws a warning.
    monkeypatch.setattr(rules, "spawn", lambda arguments, environ: subprocess.Popen(arguments, env=environ))
    script = tmp_path / "child.py"
    script.write_text("raise SystemExit(1)")
    keeper = rules.Supervisor(
        [rules.Command("child", (sys.executable, str(script)))], stop_order=["child"], environ=os.environ, patience=1
    )
    with keeper.signals_taken():
        for _ in range(20):
            child = keeper._children["child"]
            keeper._launch(child)
            child.process.wait()
            keeper._reap(child)
            assert not keeper.gave_up
            now[0] += 15.0  # four deaths in any minute: the one 60 s ago is out of it
        now[0] -= 0.1
        keeper._launch(child)
        child.process.wait()
        keeper._reap(child)
        assert keeper.gave_up


def test_children_die_with_a_supervisor_that_is_killed(keep) -> None:
    kept = keep({"one": OBEDIENT, "stubborn": STUBBORN})
    pids = [pid for _, _, pid in kept.wait_for(2, "started")]
    kept.process.kill()
    kept.end()
    for pid in pids:
        wait_until_gone(pid)


def test_a_child_that_does_not_end_in_time_is_killed_and_the_exit_code_says_so(keep) -> None:
    kept = keep({"stubborn": STUBBORN, "last": OBEDIENT}, patience=0.5)
    kept.wait_for(2, "started")
    kept.process.send_signal(signal.SIGTERM)
    code, errors = kept.end()
    assert code == 1
    assert "child_killed" in errors
    assert [name for name, _, _ in kept.events("stopped")] == ["last"]


def test_a_second_signal_cuts(keep) -> None:
    kept = keep({"slow": SLOW, "last": OBEDIENT}, patience=60)
    kept.wait_for(2, "started")
    kept.process.send_signal(signal.SIGTERM)
    kept.wait_for(1, "draining")
    kept.process.send_signal(signal.SIGTERM)
    kept.end(within=10)
    assert len(kept.events("cut")) == 1
    assert len(kept.events("stopped")) == 1


def test_a_child_that_dies_while_others_drain_is_started_again_until_its_turn_comes(keep) -> None:
    kept = keep({"slow": SLOW, "needed": OBEDIENT}, patience=60)
    pids = {name: pid for name, _, pid in kept.wait_for(2, "started")}
    kept.process.send_signal(signal.SIGTERM)
    kept.wait_for(1, "draining")
    os.kill(pids["needed"], signal.SIGKILL)
    kept.wait_for(3, "started")
    os.kill(pids["slow"], signal.SIGKILL)
    kept.end()
    assert [name for name, _, _ in kept.events("stopped")] == ["needed"]
