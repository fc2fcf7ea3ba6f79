"""The client goes on with a renewed certificate while it runs: nothing is asked twice, nothing is cut off."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

import pytest

from gateway.client.connection import LOOK_EVERY, Connection, Line
from gateway.client.credentials import Credentials
from gateway.client.faults import Faults
from gateway.errors import AuthUnavailable
from tests.gateway.client_harness import RIGHTS, real_auth
from tests.support.ledger import MODEL, SECRET

GOOD_FOR = 3.0  # seconds
DAY = 86_400


@pytest.fixture
def auth(tmp_path):
    with real_auth(tmp_path) as running:
        running.add_token(SECRET)
        yield running


def end_of_the_old_one(auth, began):
    """Lets the first certificate end, and has every connection made anew."""
    time.sleep(max(0.0, began + GOOD_FOR + 1 - time.monotonic()))
    auth.stop()
    auth.start()


def test_a_renewed_certificate_takes_over(auth):
    began = time.monotonic()
    auth.issue("billing", RIGHTS, days=GOOD_FOR / DAY)
    with auth.gateway(timeout=3.0) as gateway:
        gateway.check(SECRET)
        call = gateway.validate(SECRET, model=MODEL, input_tokens=1, max_output_tokens=1)
        auth.issue("billing", RIGHTS)
        end_of_the_old_one(auth, began)
        assert gateway.record_usage(call, input_tokens=1, output_tokens=1).delivered
        gateway.check(SECRET)


async def test_a_renewed_certificate_takes_over_in_asyncio(auth):
    began = time.monotonic()
    auth.issue("billing", RIGHTS, days=GOOD_FOR / DAY)
    async with auth.async_gateway(timeout=3.0) as gateway:
        await gateway.check(SECRET)
        auth.issue("billing", RIGHTS)
        await asyncio.to_thread(end_of_the_old_one, auth, began)
        await gateway.check(SECRET)


def test_without_a_renewal_the_client_says_that_its_certificate_has_ended(auth):
    began = time.monotonic()
    auth.issue("billing", RIGHTS, days=GOOD_FOR / DAY)
    with auth.gateway(timeout=0.5) as gateway:
        gateway.check(SECRET)
        end_of_the_old_one(auth, began)
        with pytest.raises(AuthUnavailable, match="expired on"):
            gateway.check(SECRET)


class Lines:
    """A connection over lines that are only counted, and its clock."""

    def __init__(self, folder):
        self.now, self.dialled, self.closed = 0.0, [], []
        self.connection = Connection(self.dial, Credentials.load(folder), clock=lambda: self.now)

    def dial(self, credentials):
        self.dialled.append(credentials)
        number = len(self.dialled)
        return Line(number, lambda: self.closed.append(number), Faults("here", credentials))

    def one_call(self):
        """Takes a line after the pause between two looks and gives it back; gives its number."""
        self.now += LOOK_EVERY
        line = self.connection.take()
        self.give_back(line)
        return line.stub

    def give_back(self, line):
        for over in self.connection.give_back(line):
            over.close()


def test_a_line_is_closed_when_its_last_call_has_ended(auth):
    lines = Lines(auth.folder / "billing")
    running = [lines.connection.take(), lines.connection.take()]
    auth.issue("billing", RIGHTS)
    assert lines.one_call() == 2
    lines.give_back(running[0])
    assert lines.closed == [] and [line.stub for line in lines.connection.lines()] == [2, 1]
    lines.give_back(running[1])
    assert lines.closed == [1] and [line.stub for line in lines.connection.lines()] == [2]
    auth.issue("billing", RIGHTS)
    assert lines.one_call() == 3  # line 2 was idle
    assert lines.closed == [1, 2]


def test_files_are_looked_at_once_a_second(auth):
    lines = Lines(auth.folder / "billing")
    assert lines.one_call() == 1
    auth.issue("billing", RIGHTS)
    lines.give_back(lines.connection.take())
    assert len(lines.dialled) == 1
    assert lines.one_call() == 2


def test_a_folder_that_holds_no_good_identity_changes_nothing_and_is_named_once(auth, caplog):
    folder = auth.folder / "billing"
    lines = Lines(folder)
    good = {name: (folder / name).read_bytes() for name in ("cert.pem", "key.pem", "ca.pem")}
    auth.issue("other", RIGHTS)
    wrong = {
        "holds no readable certificate": {"cert.pem": b""},
        "is not the key of": {"key.pem": (auth.folder / "other" / "key.pem").read_bytes()},
        "now holds the identity other": {name: (auth.folder / "other" / name).read_bytes() for name in good},
    }
    for fault, files in wrong.items():
        for name, content in {**good, **files}.items():
            (folder / name).write_bytes(content)
        with caplog.at_level(logging.WARNING, "gateway.client"):
            assert [lines.one_call() for _ in range(3)] == [1, 1, 1]
        assert [fault in record.message for record in caplog.records] == [True]
        caplog.clear()
    (folder / "key.pem").unlink()
    assert lines.one_call() == 1
    auth.issue("billing", RIGHTS)
    assert lines.one_call() == 2


def test_credentials_without_a_folder_stay(auth):
    lines = Lines(auth.folder / "billing")
    lines.connection = Connection(lines.dial, replace(Credentials.load(auth.folder / "billing"), directory=""))
    auth.issue("billing", RIGHTS)
    lines.dialled.clear()
    lines.one_call()
    assert lines.dialled == []
