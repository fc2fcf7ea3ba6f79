"""What is told once: the first administrator's one-time password and the first client token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gateway.client_tokens import NewToken
from gateway.clock import SystemClock
from gateway.money import CURRENCY, NANOS
from gateway.process.settings import Settings
from gateway.storage import administrators, models
from gateway.storage.audit import OPERATOR, Actor
from gateway.storage.database import Database, faults
from gateway.storage.tokens import TokenStore

FIRST_TOKEN = "first-token"  # noqa: S105 - its name
FIRST_BUDGET = 5  # dollars

_TOLD = "first_secrets_told"  # in `meta`


@dataclass(frozen=True, slots=True)
class FirstSecrets:
    """Both secrets; None: there was none to make."""

    password: str | None
    token: str | None
    token_id: int | None


@dataclass(frozen=True, slots=True)
class Shown:
    """What the lines to copy are made of: the URL of the edge, without a slash at its end, and how `gateway` is called."""

    url: str
    gateway: str


def are_told(db: Database) -> bool:
    """Whether the first secrets have reached somebody."""
    with faults():
        return bool(models.Meta.select().where(models.Meta.key == _TOLD).exists(db))


def mark_told(db: Database) -> None:
    """Notes that they have. From now on they are not made again."""
    with db.write():
        models.Meta.insert(key=_TOLD, value="1").on_conflict_ignore().execute(db)


def make_given_administrator(db: Database, settings: Settings) -> None:
    """Makes the first administrator where the settings give the password: there is nothing to tell, so it need not wait."""
    if settings.admin_password:
        administrators.withdraw_unused_bootstrap(db)
        administrators.bootstrap(db, settings.admin_password.get_secret_value())


def make(db: Database, settings: Settings, *, token_key: bytes) -> FirstSecrets:
    """Makes the first administrator and the first token.

    What an earlier try made and did not live to tell is made anew, so that a kill at any moment locks nobody out: a one-time
    password that nobody has logged in with, and a first token that has made no call.
    """
    make_given_administrator(db, settings)
    administrators.withdraw_unused_bootstrap(db)
    password = administrators.bootstrap(db, None)
    store = TokenStore(db, token_key=token_key, clock=SystemClock())
    actor = Actor(OPERATOR)
    with faults():
        rows = list(models.ClientToken.select().limit(2).execute(db))
    if not rows:
        new = NewToken(name=FIRST_TOKEN, max_amount_nanos=FIRST_BUDGET * NANOS)
        issued = store.create(new, actor=actor)
    elif len(rows) == 1 and rows[0].name == FIRST_TOKEN and not rows[0].request_count and rows[0].deleted_at is None:
        issued = store.rotate(rows[0].id, actor=actor)
    else:
        return FirstSecrets(password, None, None)
    return FirstSecrets(password, issued.secret, issued.token.id)


def as_json(secrets: FirstSecrets, shown: Shown) -> dict[str, Any]:
    """The secrets for programs; fields without a value are absent."""
    url = shown.url
    told: dict[str, Any] = {"url": url}
    if secrets.password:
        told["administrator"] = {"username": administrators.FIRST, "one_time_password": secrets.password}
    if secrets.token:
        told["token"] = {
            "id": secrets.token_id,
            "name": FIRST_TOKEN,
            "token": secrets.token,
            "max_amount": float(FIRST_BUDGET),
            "currency": CURRENCY,
        }
        told["openai_base_url"] = f"{url}/v1"
        told["curl"] = _curl(url, secrets.token)
    return told


def as_text(secrets: FirstSecrets, shown: Shown, *, given: bool) -> str:
    """The secrets for people, with lines to copy. No drawn frame: a line that is copied holds nothing but itself.

    given: whether the settings gave the administrator's password.
    """
    url, gateway = shown.url, shown.gateway
    lines = ["", "Shown once, now:", ""]
    if secrets.password:
        lines += [
            f"  administrator  {administrators.FIRST}",
            f"  password       {secrets.password}   (one-time, for 24 hours; set your own: {gateway} admin passwd)",
        ]
    elif given:
        lines += [f"  administrator  {administrators.FIRST}", "  password       the one in GATEWAY_ADMIN_PASSWORD"]
    if secrets.token:
        lines += [
            f"  client token   {secrets.token}   ({FIRST_TOKEN}, ${FIRST_BUDGET})",
            "",
            "Try it, with the built-in demo provider:",
            "",
            _curl(url, secrets.token),
            "",
            "Point an OpenAI SDK at it:",
            "",
            f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={secrets.token}",
        ]
    lines += ["", f"More tokens: {gateway} token create --name app --max-amount 5", ""]
    return "\n".join(lines)


def _curl(url: str, token: str) -> str:
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "Hello"}]})
    return (
        f"curl -sS {url}/v1/chat/completions -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' -d '{body}'"
    )
