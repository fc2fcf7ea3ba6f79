"""Administrators' sessions: their secrets, how long they live, what a password must be and how often one may be tried."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

TOKEN_PREFIX = "gzs_"  # noqa: S105 - the form of a secret, not one
IDLE = timedelta(minutes=30)
ABSOLUTE = timedelta(hours=12)
AHEAD = timedelta(minutes=1)
"""By how much a session may have been opened later than now: another machine's clock may be ahead of ours."""
ONE_TIME_LIFE = timedelta(hours=24)

ROLE_ADMIN = "admin"
ROLE_PASSWORD_CHANGE = "password_change"  # noqa: S105 - a role

_TOKEN = re.compile(r"gzs_[A-Za-z0-9_-]{43}")
_USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")

MIN_PASSWORD_CHARACTERS = 8
MAX_PASSWORD_BYTES = 1024


# -- the secret of a session --------------------------------------------------------------------------------------------------


def new_session_token() -> str:
    """The secret of a new session: `gzs_` and 256 random bits in URL-safe base64."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def is_session_token(text: str) -> bool:
    """Whether this has the form of a session's secret. Says nothing about whether there is such a session."""
    return _TOKEN.fullmatch(text) is not None


def hash_session_token(secret: str) -> bytes:
    """What the database keeps of a session's secret: 32 bytes of SHA-256. The secret is random, so that is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def is_live(*, created_at: datetime, last_used_at: datetime, now: datetime) -> bool:
    """Whether a session still holds: used within the last 30 minutes, and opened within the last 12 hours.

    One from the future was opened by a clock that was wrong, and would hold for longer than it may.
    """
    return created_at <= now + AHEAD and now - last_used_at < IDLE and now - created_at < ABSOLUTE


# -- names and passwords ------------------------------------------------------------------------------------------------------


def is_username(text: str) -> bool:
    """Whether this can be an administrator's name: 1 to 64 letters, digits and `._@+-`, beginning with a letter or digit."""
    return _USERNAME.fullmatch(text) is not None


def generate_password() -> str:
    """A one-time password: 20 characters (about 100 bits) that are told apart by eye, in groups of five."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"
    drawn = "".join(secrets.choice(alphabet) for _ in range(20))
    return "-".join(drawn[start : start + 5] for start in range(0, 20, 5))


def password_fault(password: str, username: str) -> str | None:
    """What is wrong with a new password, in words for the one who chose it; None: nothing.

    8 characters to 1,024 bytes, none of the best-known ones (digits and signs at their end make no difference), not the
    administrator's own name, not one character or one run of the keyboard repeated.
    """
    if len(password) < MIN_PASSWORD_CHARACTERS:
        return f"the password is too short: take {MIN_PASSWORD_CHARACTERS} characters or more, better 15"
    if is_too_long(password):
        return f"the password is too long: take at most {MAX_PASSWORD_BYTES} bytes"
    plain = password.casefold()
    stem = plain.rstrip("0123456789!@#$%^&*()-_=+.,?/ ")
    repeats = any(plain == (plain[:width] * len(plain))[: len(plain)] for width in (1, 2, 3))
    if repeats or plain in _COMMON or stem in _COMMON or stem == username.casefold():
        return "the password is too common: take one that nobody would try, better 15 characters or more"
    return None


def is_too_long(password: str) -> bool:
    """Whether a password is above 1,024 bytes: such a one is refused before anything is hashed."""
    return len(password) > MAX_PASSWORD_BYTES or len(password.encode("utf-8", "surrogatepass")) > MAX_PASSWORD_BYTES


# The passwords that lists of leaked ones begin with (and sample files of other products), lower case; with digits and signs at
# the end they are covered by their stem.
_COMMON = frozenset(
    """
    password passwort passw0rd p@ssword p@ssw0rd pa$$word pa$$w0rd passwd pass mypassword password1 newpassword yourpassword
    changeme change-me change_me changeit changethis secret topsecret mysecret supersecret default letmein welcome willkommen
    admin administrator adminadmin root rootroot toor superuser sysadmin operator master manager
    gateway gatewayzero gateway-zero gateway_zero test testtest tester testing example sample demo guest user login
    qwerty qwertz azerty qwertyui qwertyuiop qwertzuiop asdfghjk asdfghjkl zxcvbnm 1qaz2wsx 1q2w3e4r 1q2w3e4r5t q1w2e3r4 qazwsx
    qazwsxedc zaq12wsx 1qazxsw2 qwerty123456 qwer1234 abcd1234 a1b2c3d4 aa123456 abc12345 abcdefgh abcdefghi abcdefghij
    12345678 123456789 1234567890 0123456789 87654321 987654321 0987654321 11223344 12341234 123123123 147258369 123654789
    iloveyou ilovegod loveyou lovely sunshine princess football baseball basketball superman batman spiderman pokemon starwars
    dragon monkey shadow michael jennifer jordan hunter trustno computer internet samsung whatever freedom mustang corvette
    charlie jessica michelle nicole daniel ashley thomas pepper ginger cheese chocolate butterfly liverpool chelsea arsenal
    blink myspace google facebook linkedin microsoft windows oracle postgres postgresql mysql docker kubernetes
    hunter2 letmeinnow access flower hello helloworld summer winter spring autumn january
    """.split()  # noqa: SIM905 - a list of words is easier to read as words
)


# -- how often a password may be tried ----------------------------------------------------------------------------------------

TRIES_A_MINUTE = 10
NAMES_A_MINUTE = 30
"""Different names that one address may try in a minute: each costs a hash of a password, also where there is no such name."""
FREE_FAILURES = 5
LONGEST_WAIT = timedelta(minutes=5)
FORGET_AFTER = timedelta(minutes=15)
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Tries:
    """The tries at one account that still count, over all doors and processes.

    moments: when passwords were verified in the last 15 minutes, whatever came of it, oldest first.
    failures: how many of them failed since the last right one.
    """

    moments: Sequence[datetime]
    failures: int


def wait_before_try(tries: Tries, now: datetime) -> float:
    """Seconds until the next password of this account may be verified; 0: now.

    At most 10 verifications in any minute. The first five failures in a row cost nothing, then the wait doubles with each one:
    1 s, 2 s, 4 s, up to 5 minutes; so a right password works again 5 minutes after the last wrong one at the latest.
    A clock that was set back never makes the wait longer than that.
    """
    if not tries.moments:
        return 0.0
    waits = [0.0]
    if tries.failures >= FREE_FAILURES:
        doublings = min(tries.failures - FREE_FAILURES, 16)
        delay = min(timedelta(seconds=2**doublings), LONGEST_WAIT)
        waits.append(min((tries.moments[-1] + delay - now), delay).total_seconds())
    if len(tries.moments) >= TRIES_A_MINUTE:
        waits.append(min(tries.moments[-TRIES_A_MINUTE] + MINUTE - now, MINUTE).total_seconds())
    return max(waits)
