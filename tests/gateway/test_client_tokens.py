"""The fields of a client token, as administrators see and change them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.client_tokens import ClientToken, checked, expiry_warnings, model_warnings, new_token
from gateway.errors import InvalidArgument
from gateway.quota import TokenState, TokenStatus, status

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TOKEN = ClientToken(
    id=1, name="app", display_hint="", weak=False, allowed_models=(), enabled=True, expires_at=None, customer="", remark="",
    created_at=NOW, last_used_at=None, version=1, max_amount_nanos=None, budget_mode="strict", period_spent_nanos=0,
    amount_spent_nanos=0, held_nanos=0, prompt_tokens=0, completion_tokens=0, request_count=0,
)  # fmt: skip


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("expires_at", [None, NOW - timedelta(seconds=1), NOW, NOW + timedelta(days=1)])
@pytest.mark.parametrize(("maximum", "spent"), [(None, 5), (10, 9), (10, 10), (10, 11), (0, 0)])
def test_the_status_shown_is_the_one_that_admission_goes_by(enabled, expires_at, maximum, spent):
    token = replace(TOKEN, enabled=enabled, expires_at=expires_at, max_amount_nanos=maximum, period_spent_nanos=spent)
    text = None if expires_at is None else expires_at.isoformat()
    assert token.status(NOW) is status(TokenState(1, enabled, text, None, maximum, True, spent, 0), NOW)


def test_what_is_left_may_be_negative():
    assert replace(TOKEN, max_amount_nanos=10, period_spent_nanos=12).remaining_nanos == -2
    assert TOKEN.remaining_nanos is None
    assert replace(TOKEN, max_amount_nanos=10).status(NOW) is TokenStatus.ACTIVE


def test_fields_are_trimmed_and_cleared():
    assert checked({"name": "  app ", "customer": None, "expires_at": None, "max_amount_nanos": None}) == {
        "name": "app", "customer": "", "expires_at": None, "max_amount_nanos": None,
    }  # fmt: skip
    assert new_token({"allowed_models": "gpt-4, claude-3,gpt-4"}).allowed_models == ("gpt-4", "claude-3")


@pytest.mark.parametrize(
    "values",
    [
        {"name": "x" * 201}, {"name": "a\nb"}, {"name": "a\0b"}, {"customer": "x" * 201},
        {"remark": "x" * 2001}, {"remark": "\x1b[31m"},
        {"max_amount_nanos": -1}, {"max_amount_nanos": 2**63}, {"budget_mode": "lax"}, {"enabled": None},
        {"allowed_models": ["x" * 300]}, {"allowed_models": ["a,b"]}, {"allowed_models": [f"m{n}" for n in range(1001)]},
    ],
)  # fmt: skip
def test_what_a_field_does_not_take_is_refused(values):
    with pytest.raises(InvalidArgument):
        checked(values)


def test_the_secret_of_a_new_token_is_in_no_text_of_it():
    assert "my-test-token" not in repr(new_token({}, secret="my-test-token"))


def test_a_day_that_has_passed_is_told():
    assert expiry_warnings(NOW + timedelta(days=1), NOW) == []
    assert expiry_warnings(None, NOW) == []
    assert "has passed" in expiry_warnings(NOW - timedelta(days=1), NOW)[0]


SERVED = {"openai": ("gpt-4", "gpt-4o-*"), "demo": ("demo", "claude-*")}


@pytest.mark.parametrize(
    "name", ["gpt-4", "gpt-4o-mini", "claude-3", "demo", "gpt-*", "g*", "*", "gpt-4o*", "claude-3-*", "gpt-4*"]
)
def test_a_name_that_a_provider_serves_gives_no_warning(name):
    assert model_warnings([name], SERVED) == []


def test_a_name_that_nobody_serves_gives_a_warning_with_the_pattern():
    assert model_warnings(["gpt-5"], SERVED) == [
        "allowed_models: no provider serves 'gpt-5' now; gpt-5* opens all names that begin so"
    ]
    assert "gpt-4*" not in model_warnings(["mistral-*"], SERVED)[0]
    assert "de* would open demo" in model_warnings(["de"], SERVED)[0]
    assert model_warnings(["anything"], {}) == []
