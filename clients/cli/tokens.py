"""`gateway token …`: client tokens, through admin's TokenService."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from clients.cli.connection import DEADLINE, admin_channel
from clients.cli.entries import line_of_stdin, reading
from clients.cli.output import FAULT, USAGE, Failure, Json, fields, table, tell, tell_json, warn
from clients.cli.wire import MODES, PERIODS, ROW_HEADINGS, token_to_fields, token_to_json, token_to_row
from gateway.clock import parse_expiry
from gateway.ids import uuid7
from gateway.money import to_nanos
from gateway.patterns import parse_models
from gateway.stubs.admin.v1 import tokens_pb2 as pb
from gateway.stubs.admin.v1.tokens_pb2_grpc import TokenServiceStub

app = App(name="token", help="Make client tokens and look after them. What is changed holds from the token's next call on.")

Period = Literal["total", "daily", "weekly", "monthly"]
Addresses = Annotated[
    list[str] | None,
    Parameter(
        help="The addresses and networks that it may be used from, comma-separated; all when absent.", alias="--allowed-ips"
    ),
]
_NO_LIMIT = "none"
_MOST_DIGITS = 19  # of a number in the database, which has 63 bits
_MOST_SHOWN = 40
Limit = Annotated[str | None, Parameter(help="So many, 0 for nothing at all; none: no limit.")]
Which = Annotated[str, Parameter(help="The token's id, or its name if no other token has it.")]


@app.command
def create(
    *,
    name: Annotated[str, Parameter(help="A label, at most 200 characters; token-<id> when absent.")] = "",
    max_amount: Annotated[str | None, Parameter(help="The budget in USD, such as 5 or 0.25; no budget when absent.")] = None,
    models: Annotated[
        list[str] | None,
        Parameter(
            help="The models that it opens, comma-separated, * as a wildcard; all when absent.", alias="--allowed-models"
        ),
    ] = None,
    expires_at: Annotated[str | None, Parameter(help="The last day (2027-01-01) or moment (2027-01-01T12:00:00Z).")] = None,
    budget_mode: Annotated[
        Literal["strict", "soft"],
        Parameter(help="strict: never exceeded; soft: charged afterwards, calls in flight may exceed it."),
    ] = "strict",
    period: Annotated[Period, Parameter(help="How often the budget starts anew, by UTC; total: never.")] = "total",
    requests_per_minute: Annotated[int | None, Parameter(help="Calls a minute; no limit when absent, 0: none.")] = None,
    tokens_per_minute: Annotated[int | None, Parameter(help="Tokens a minute; no limit when absent, 0: none.")] = None,
    parallel: Annotated[int | None, Parameter(help="Calls at once; no limit when absent, 0: none.")] = None,
    ips: Addresses = None,
    customer: Annotated[str, Parameter(help="Whom it is for.")] = "",
    remark: Annotated[str, Parameter(help="Free text.")] = "",
    disabled: Annotated[bool, Parameter(help="Make it switched off.")] = False,
    token_stdin: Annotated[bool, Parameter(help="Read a secret of your own choice from standard input.")] = False,
    json: Json = False,
) -> None:
    """Make a token. Its secret is shown once.

    Example: gateway token create --name app --max-amount 5 --models 'gpt-4*' --expires-at 2027-01-01 --json
    """
    wanted = pb.Token(
        name=name,
        customer=customer,
        remark=remark,
        budget_mode=MODES[budget_mode],
        budget_period=PERIODS[period],
        requests_per_minute=_whole(requests_per_minute),
        tokens_per_minute=_whole(tokens_per_minute),
        max_parallel_requests=_whole(parallel),
        allowed_ips=_entries(ips),
    )
    with reading():
        wanted.allowed_models.extend(parse_models(",".join(models or [])))
        if max_amount is not None:
            wanted.max_amount_nanos = to_nanos(max_amount)
        if expires_at is not None:
            wanted.expires_at.FromDatetime(parse_expiry(expires_at))
    secret = line_of_stdin() if token_stdin else ""
    request = pb.CreateTokenRequest(request_id=uuid7(), token=wanted, secret=secret, disabled=disabled)
    with _tokens() as stub:
        answer = stub.CreateToken(request, timeout=DEADLINE)
    for warning in answer.warnings:
        warn(warning)
    _show(answer.token, as_json=json, secret=answer.secret, warnings=list(answer.warnings))


@app.command(name="list")
def list_(
    *,
    name: Annotated[str, Parameter(help="Only names that contain this.")] = "",
    customer: Annotated[str, Parameter(help="Only this customer's.")] = "",
    limit: Annotated[int, Parameter(help="At most so many, from 1 to 1000.")] = 100,
    page_token: Annotated[str, Parameter(help="Go on where the answer before ended.")] = "",
    json: Json = False,
) -> None:
    """List tokens, the newest first.

    Example: gateway token list --name app --limit 20
    """
    if not 1 <= limit <= 1000:
        raise Failure("--limit is from 1 to 1000", code=USAGE, reason="usage")
    request = pb.ListTokensRequest(page_size=limit, page_token=page_token, name_contains=name, customer=customer)
    with _tokens() as stub:
        answer = stub.ListTokens(request, timeout=DEADLINE)
    if json:
        tokens = [token_to_json(token) for token in answer.tokens]
        tell_json({"tokens": tokens, "next_page_token": answer.next_page_token or None})
        return
    table(ROW_HEADINGS, map(token_to_row, answer.tokens))
    if answer.next_page_token:
        warn(f"there are more: gateway token list --page-token {answer.next_page_token}")


@app.command
def show(token: Which, *, json: Json = False) -> None:
    """Show a token.

    Example: gateway token show app --json
    """
    with _tokens() as stub:
        answer = stub.GetToken(pb.GetTokenRequest(id=id_of(stub, token)), timeout=DEADLINE)
    _show(answer.token, as_json=json)


@app.command
def update(
    token: Which,
    *,
    name: Annotated[str | None, Parameter(help="The label; empty: token-<id>.")] = None,
    max_amount: Annotated[str | None, Parameter(help="The budget in USD; none: no budget.")] = None,
    models: Annotated[
        list[str] | None, Parameter(help="The models that it opens, comma-separated; empty: all.", alias="--allowed-models")
    ] = None,
    expires_at: Annotated[str | None, Parameter(help="The last day or moment; none: it never expires.")] = None,
    budget_mode: Annotated[Literal["strict", "soft"] | None, Parameter(help="How the budget is kept.")] = None,
    period: Annotated[Period | None, Parameter(help="How often the budget starts anew, by UTC; total: never.")] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    parallel: Limit = None,
    ips: Annotated[
        list[str] | None,
        Parameter(help="Where it may be used from, comma-separated; empty: everywhere.", alias="--allowed-ips"),
    ] = None,
    customer: Annotated[str | None, Parameter(help="Whom it is for.")] = None,
    remark: Annotated[str | None, Parameter(help="Free text.")] = None,
    json: Json = False,
) -> None:
    """Change a token: what is not given stays as it is.

    Example: gateway token update app --requests-per-minute 60 --period monthly --max-amount none
    """
    given: dict[str, str | list[str] | None] = {
        "name": name,
        "allowed_models": models,
        "allowed_ips": ips,
        "expires_at": expires_at,
        "customer": customer,
        "remark": remark,
        "max_amount_nanos": max_amount,
        "budget_mode": budget_mode,
        "budget_period": period,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_parallel_requests": parallel,
    }
    wanted = pb.Token()
    paths = [field for field, value in given.items() if value is not None]
    with reading():
        for field in paths:
            _put(wanted, field, given[field])
    if not paths:
        raise Failure("nothing to change: give an option, such as --max-amount 10", code=USAGE, reason="usage")
    with _tokens() as stub:
        wanted.id = id_of(stub, token)
        request = pb.UpdateTokenRequest(token=wanted)
        request.update_mask.paths.extend(paths)
        answer = stub.UpdateToken(request, timeout=DEADLINE)
    for warning in answer.warnings:
        warn(warning)
    _show(answer.token, as_json=json, warnings=list(answer.warnings))


@app.command
def enable(token: Which, *, json: Json = False) -> None:
    """Switch a token on.

    Example: gateway token enable app
    """
    _switch(token, enabled=True, as_json=json)


@app.command
def disable(token: Which, *, json: Json = False) -> None:
    """Switch a token off: its next call is refused.

    Example: gateway token disable app
    """
    _switch(token, enabled=False, as_json=json)


@app.command
def rotate(
    token: Which,
    *,
    grace: Annotated[int, Parameter(help="For so many seconds, at most 604800, the old secret works beside the new one.")] = 0,
    json: Json = False,
) -> None:
    """Give a token a new secret, shown once. The old one is dead at once, or after the grace time.

    Example: gateway token rotate app --grace 3600 --json
    """
    with _tokens() as stub:
        request = pb.RotateTokenRequest(request_id=uuid7(), id=id_of(stub, token), grace_seconds=_whole(grace) or 0)
        answer = stub.RotateToken(request, timeout=DEADLINE)
    _show(answer.token, as_json=json, secret=answer.secret)


@app.command
def topup(
    token: Which, amount: Annotated[str, Parameter(help="How much more, in USD, such as 10.")], *, json: Json = False
) -> None:
    """Raise a token's budget.

    Example: gateway token topup app 10
    """
    with reading():
        nanos = to_nanos(amount)
    with _tokens() as stub:
        request = pb.TopUpTokenRequest(request_id=uuid7(), id=id_of(stub, token), amount_nanos=nanos)
        answer = stub.TopUpToken(request, timeout=DEADLINE)
    if json:
        tell_json(token_to_json(answer.token) | {"revived": answer.revived})
        return
    if answer.revived:
        tell("the budget was spent: calls pass again")
    _show(answer.token, as_json=False)


@app.command
def delete(token: Which, *, json: Json = False) -> None:
    """Delete a token: no call passes any more, the history stays.

    Example: gateway token delete app
    """
    with _tokens() as stub:
        number = id_of(stub, token)
        stub.DeleteToken(pb.DeleteTokenRequest(id=number), timeout=DEADLINE)
    if json:
        tell_json({"id": number, "deleted": True})
    else:
        tell(f"token {number} is deleted")


def _switch(token: str, *, enabled: bool, as_json: bool) -> None:
    with _tokens() as stub:
        request = pb.SetTokenEnabledRequest(id=id_of(stub, token), enabled=enabled)
        answer = stub.SetTokenEnabled(request, timeout=DEADLINE)
    _show(answer.token, as_json=as_json)


def _show(token: pb.Token, *, as_json: bool, secret: str = "", warnings: list[str] | None = None) -> None:
    if as_json:
        shown = token_to_json(token, secret)
        tell_json(shown if warnings is None else shown | {"warnings": warnings})
    else:
        fields(token_to_fields(token, secret))


def _put(token: pb.Token, field: str, value: Any) -> None:
    """Sets a field as the command line writes it; what is to be cleared stays absent. Raises ValueError."""
    match field:
        case "name" | "customer" | "remark":
            setattr(token, field, value)
        case "allowed_models" | "allowed_ips":
            getattr(token, field).extend(_entries(value))
        case "budget_mode":
            token.budget_mode = MODES[value]
        case "budget_period":
            token.budget_period = PERIODS[value]
        case _ if value == _NO_LIMIT:
            return
        case "max_amount_nanos":
            token.max_amount_nanos = to_nanos(value)
        case "expires_at":
            token.expires_at.FromDatetime(parse_expiry(value))
        case _:
            setattr(token, field, _limit(value))


def _entries(texts: list[str] | None) -> list[str]:
    """The entries of an option that takes several, or one text with commas."""
    return [entry.strip() for entry in ",".join(texts or []).split(",") if entry.strip()]


def _limit(text: str) -> int:
    """A limit that is one. Raises ValueError."""
    if not (text.isascii() and text.isdecimal() and int(text) < 1 << 31):
        raise ValueError(f"{text!r} is no limit: write a whole number of 0 to {(1 << 31) - 1}, or none")
    return int(text)


def _whole(number: int | None) -> int | None:
    """A number that fits into a message."""
    if number is not None and not 0 <= number < 1 << 31:
        raise Failure(f"{number} is out of range: write a whole number of 0 to {(1 << 31) - 1}", code=USAGE, reason="usage")
    return number


@contextmanager
def _tokens() -> Iterator[TokenServiceStub]:
    with admin_channel() as channel:
        yield TokenServiceStub(channel)


def given_id(token: str) -> int | None:
    """The id, where an id was given and not a name. Raises Failure where no token can have it."""
    if not (token.isascii() and token.isdecimal()):
        return None
    digits = token.lstrip("0")
    if not digits or len(digits) > _MOST_DIGITS or int(digits) >= 1 << 63:
        raise Failure(f"there is no token {token[:_MOST_SHOWN]}", code=FAULT, reason="not_found")
    return int(digits)


def id_of(stub: TokenServiceStub, token: str) -> int:
    """The id that was given, or that of the one token with this name. Raises Failure where there is none, or several."""
    number = given_id(token)
    if number is not None:
        return number
    found: list[pb.Token] = []
    page = ""
    while True:
        request = pb.ListTokensRequest(page_size=1000, page_token=page, name_contains=token)
        answer = stub.ListTokens(request, timeout=DEADLINE)
        found += [candidate for candidate in answer.tokens if candidate.name == token]
        page = answer.next_page_token
        if not page:
            break
    if not found:
        raise Failure(f"there is no token {token!r}; `gateway token list` shows them", code=FAULT, reason="not_found")
    if len(found) > 1:
        ids = ", ".join(str(candidate.id) for candidate in found[:5])
        raise Failure(f"{len(found)} tokens are called {token!r}: give the id ({ids})", code=USAGE, reason="ambiguous")
    return found[0].id


# These stand in a module of their own.
app.command("clients.cli.adjustments:adjust", name="adjust", help="Correct what a token has spent.")
app.command("clients.cli.adjustments:adjustments", name="adjustments", help="List a token's corrections.")
