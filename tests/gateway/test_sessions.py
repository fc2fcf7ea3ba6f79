"""Administrators' sessions: secrets, lifetimes, passwords, and how often one may be tried."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest

from gateway import sessions

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def test_a_session_token_has_its_form_and_256_random_bits():
    token = sessions.new_session_token()
    assert token.startswith("gzs_")
    assert len(base64.urlsafe_b64decode(token[4:] + "=")) == 32
    assert sessions.is_session_token(token)
    assert len({sessions.new_session_token() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "text", ["", "gzs_", "sk-gz-abc", "gzs_" + "a" * 42, "gzs_" + "a" * 44, "gzs_" + "é" * 43, "gzs_" + "a" * 43 + "\n"]
)
def test_what_is_no_session_token_is_known_without_a_database(text):
    assert not sessions.is_session_token(text)


def test_only_a_hash_of_a_session_token_can_be_kept():
    token = sessions.new_session_token()
    assert len(sessions.hash_session_token(token)) == 32
    assert token.encode() not in sessions.hash_session_token(token)


@pytest.mark.parametrize(
    ("age", "idle", "live"),
    [
        ({"hours": 0}, {"minutes": 0}, True),
        ({"hours": 1}, {"minutes": 29, "seconds": 59}, True),
        ({"hours": 1}, {"minutes": 30}, False),
        ({"hours": 11, "minutes": 59}, {"minutes": 1}, True),
        ({"hours": 12}, {"minutes": 0}, False),
    ],
)
def test_a_session_ends_30_minutes_after_its_last_use_and_12_hours_after_its_start(age, idle, live):
    created_at, last_used_at = NOW - timedelta(**age), NOW - timedelta(**idle)
    assert sessions.is_live(created_at=created_at, last_used_at=last_used_at, now=NOW) is live


@pytest.mark.parametrize(
    "password",
    [
        "", "short77", "password", "Password1!", "PASSWORD123", "changeme", "admin", "administrator", "admin2026!", "12345678",
        "qwertyuiop", "letmein2024", "aaaaaaaaaaaa", "abcabcabcabc", "ops-lead1", "x" * 1025, "é" * 513,
    ],
)  # fmt: skip
def test_a_password_that_is_short_or_over_long_or_common_is_refused(password):
    assert sessions.password_fault(password, "ops-lead") is not None


@pytest.mark.parametrize(
    "password", ["correct horse battery", "x9$kLq2!", "é" * 509 + "abcdef", "ab" * 3 + "cd" * 29, "my-own-long-phrase-1"]
)
def test_any_other_password_of_8_characters_to_1024_bytes_is_taken(password):
    assert sessions.password_fault(password, "admin") is None


def test_a_generated_password_is_strong_and_passes_the_rules():
    password = sessions.generate_password()
    assert sessions.password_fault(password, "admin") is None
    assert len(password.replace("-", "")) == 20


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("admin", True),
        ("a.b@c-d_e+f", True),
        ("", False),
        ("a" * 65, False),
        ("a b", False),
        ("-a", False),
        ("ä", False),
        ("a\n", False),
    ],
)
def test_a_user_name_is_plain(name, good):
    assert sessions.is_username(name) is good


class Guesser:
    """Tries a password every tenth of a second, whether or not it may."""

    def __init__(self):
        self.now = NOW
        self.moments: list[datetime] = []
        self.failures = 0

    def wait(self):
        kept = [moment for moment in self.moments if self.now - moment <= sessions.FORGET_AFTER]
        return sessions.wait_before_try(sessions.Tries(kept, min(self.failures, len(kept))), self.now)

    def guess(self, count, *, right=False):
        refused = 0
        for _ in range(count):
            if self.wait() <= 0:
                self.moments.append(self.now)
                self.failures = 0 if right else self.failures + 1
            else:
                refused += 1
            self.now += timedelta(milliseconds=100)
        return refused


def most_in_a_minute(moments):
    return max(sum(start <= moment < start + timedelta(minutes=1) for moment in moments) for start in moments)


def test_a_thousand_guesses_get_at_most_ten_verifications_in_any_minute():
    guesser = Guesser()
    guesser.guess(10_000)
    assert most_in_a_minute(guesser.moments) <= 10
    assert len(guesser.moments) < 25


def test_the_right_password_alone_is_verified_at_most_ten_times_in_any_minute():
    guesser = Guesser()
    guesser.guess(3_000, right=True)
    assert most_in_a_minute(guesser.moments) == 10


def test_the_wait_grows_with_each_failure_and_ends_within_five_minutes():
    guesser, waits = Guesser(), []
    for _ in range(14):
        guesser.now += timedelta(seconds=guesser.wait())
        guesser.moments.append(guesser.now)
        guesser.failures += 1
        waits.append(guesser.wait())
    assert waits[:8] == [0, 0, 0, 0, 1, 2, 4, 8]
    assert waits == sorted(waits)
    assert waits[-1] == 300


def test_a_clock_that_was_set_back_does_not_lock_anybody_out():
    tries = sessions.Tries([NOW + timedelta(days=1)] * 12, 12)
    assert sessions.wait_before_try(tries, NOW) <= 300
