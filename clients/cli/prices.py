"""`gateway price …`: the price book, through admin's PriceService."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from clients.cli.connection import DEADLINE, admin_channel
from clients.cli.entries import reading
from clients.cli.output import USAGE, Failure, Json, fields, table, tell_json, warn
from clients.cli.wire import moment
from gateway.clock import parse_beginning
from gateway.ids import uuid7
from gateway.money import CURRENCY
from gateway.stubs.admin.v1 import prices_pb2 as pb
from gateway.stubs.admin.v1.prices_pb2_grpc import PriceServiceStub

app = App(
    name="price", help="See what calls cost, and lay prices of your own over the built-in ones and those of gateway.toml."
)

Provider = Annotated[str, Parameter(help="The provider whose model it is; any when absent.")]


@app.command(name="list")
def list_(
    *,
    provider: Annotated[str, Parameter(help="Only this provider's.")] = "",
    model: Annotated[str, Parameter(help="Only rows of this very model.")] = "",
    source: Annotated[Literal["", "admin", "file", "builtin"], Parameter(help="Only admin, file or builtin.")] = "",
    retired: Annotated[bool, Parameter(help="Retired rows too.")] = False,
    limit: Annotated[int, Parameter(help="At most so many, from 1 to 1000.")] = 100,
    page_token: Annotated[str, Parameter(help="Go on where the answer before ended.")] = "",
    json: Json = False,
) -> None:
    """List the rows of the price book, the newest first.

    Example: gateway price list --source admin
    """
    if not 1 <= limit <= 1000:
        raise Failure("--limit is from 1 to 1000", code=USAGE, reason="usage")
    request = pb.ListPricesRequest(
        page_size=limit, page_token=page_token, provider=provider, model=model, source=source, with_retired=retired
    )
    with admin_channel() as channel:
        answer = PriceServiceStub(channel).ListPrices(request, timeout=DEADLINE)
    if json:
        tell_json({"prices": [_to_json(price) for price in answer.prices], "next_page_token": answer.next_page_token or None})
        return
    table(("id", "provider", "model", "rates", "from", "source", "retired"), map(_row, answer.prices))
    if answer.next_page_token:
        warn(f"there are more: gateway price list --page-token {answer.next_page_token}")


@app.command(name="set")
def set_(
    model: Annotated[str, Parameter(help="The model's name at its provider, * as a wildcard.")],
    *,
    rate: Annotated[
        list[str],
        Parameter(help="A rate in USD as unit=decimal, per million tokens where the unit is one: input=2.50. Once for each."),
    ],
    provider: Provider = "",
    valid_from: Annotated[str, Parameter(name="--from", help="The day (its start, UTC) or moment; now when absent.")] = "",
    context_window: Annotated[int | None, Parameter(help="The most that it reads and writes, in tokens.")] = None,
    max_output_tokens: Annotated[int | None, Parameter(help="The most that it writes, in tokens.")] = None,
    json: Json = False,
) -> None:
    """Set a price. It binds the calls that are admitted from its moment on; open calls keep theirs.

    Example: gateway price set my-model --rate input=1.00 --rate output=2.00 --from 2027-01-01
    """
    request = pb.CreatePriceRequest(
        request_id=uuid7(),
        provider=provider,
        model=model,
        context_window=context_window,
        max_output_tokens=max_output_tokens,
    )
    for part in rate:
        unit, found, amount = part.partition("=")
        if not found:
            raise Failure(f"--rate takes unit=decimal, such as input=2.50, not {part!r}", code=USAGE, reason="usage")
        request.rates.append(pb.Rate(unit=unit.strip(), amount=amount.strip()))
    with reading():
        begins = parse_beginning(valid_from) if valid_from else None
        if begins is not None:
            request.valid_from.FromDatetime(begins)
    with admin_channel() as channel:
        answer = PriceServiceStub(channel).CreatePrice(request, timeout=DEADLINE)
    for warning in answer.warnings:
        warn(warning)
    _show(answer.price, as_json=json, warnings=list(answer.warnings))


@app.command
def retire(price: Annotated[int, Parameter(help="The price's id.")], *, json: Json = False) -> None:
    """End a price that was set here: from the next admission on, what holds without it holds again.

    Example: gateway price retire 1042
    """
    with admin_channel() as channel:
        answer = PriceServiceStub(channel).RetirePrice(pb.RetirePriceRequest(id=price), timeout=DEADLINE)
    _show(answer.price, as_json=json)


def _show(price: pb.Price, *, as_json: bool, warnings: list[str] | None = None) -> None:
    if as_json:
        tell_json(_to_json(price) | ({} if warnings is None else {"warnings": warnings}))
        return
    names = ("id", "provider", "model", "rates", "from", "source", "retired")
    fields(dict(zip(names, _row(price), strict=True)))


def _row(price: pb.Price) -> tuple[str, ...]:
    shown = _to_json(price)
    rates = ", ".join(f"{rate.unit} {rate.amount}{' (tiers)' if rate.tiers else ''}" for rate in price.rates)
    begins, retired = shown["valid_from"] or "always", shown["retired_at"] or ""
    return (str(price.id), price.provider or "any", price.model, rates, begins, price.source, retired)


def _to_json(price: pb.Price) -> dict[str, Any]:
    return {
        "id": price.id,
        "provider": price.provider or None,
        "model": price.model,
        "rates": {
            rate.unit: [rate.amount, *([tier.above_input_tokens, tier.amount] for tier in rate.tiers)]
            if rate.tiers
            else rate.amount
            for rate in price.rates
        },
        "currency": CURRENCY,
        "context_window": price.context_window if price.HasField("context_window") else None,
        "max_output_tokens": price.max_output_tokens if price.HasField("max_output_tokens") else None,
        "valid_from": _moment(price, "valid_from"),
        "source": price.source,
        "created_at": _moment(price, "created_at"),
        "retired_at": _moment(price, "retired_at"),
    }


def _moment(price: pb.Price, name: Literal["valid_from", "created_at", "retired_at"]) -> str | None:
    if not price.HasField(name):
        return None
    return moment(getattr(price, name))
