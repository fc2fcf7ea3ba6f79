"""Prices by administrators: from which moment they hold, over what, and for whom."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from datetime import timedelta

import pytest

from gateway.price_rows import ProviderRow
from gateway.storage.ledger import Ledger
from gateway.storage.prices import PriceBook, load_providers, load_rows
from gateway.storage.reconcile import reconcile
from gateway.stubs.admin.v1 import prices_pb2 as pb
from gateway.stubs.admin.v1.prices_pb2_grpc import PriceServiceStub
from services.admin.wire import moment_to_proto
from tests.admin.calls import audited, create, reason
from tests.admin.conftest import TOKEN_KEY
from tests.support.ledger import MODEL, TOKEN_PRICE, admission, price, request_row, settled


@pytest.fixture
def prices(call):
    return PriceServiceStub(call("operator").channel)


@pytest.fixture
def book(db, clock):
    load_rows(db, "file", [price(MODEL, input="1000", output="1000")], "2026-01-01T00:00:00.000000Z")
    return PriceBook(db, clock)


def put(prices, model=MODEL, provider="", request_id="", valid_from=None, **rates):
    request = pb.CreatePriceRequest(model=model, provider=provider, request_id=request_id)
    request.rates.extend(
        pb.Rate(unit=unit, amount=amount) for unit, amount in (rates or {"input": "2000", "output": "2000"}).items()
    )
    if valid_from is not None:
        request.valid_from.CopyFrom(moment_to_proto(valid_from))
    return prices.CreatePrice(request)


def holds(book, provider="demo", model=MODEL):
    book.refresh()
    rates = book.find(provider, model).rates
    return None if rates is None else json.loads(rates.to_json())["input"]


def test_an_administrators_price_goes_before_the_files_until_it_is_retired(prices, book):
    assert holds(book) == "1000"
    made = put(prices).price
    assert holds(book) == "2000"
    retired = prices.RetirePrice(pb.RetirePriceRequest(id=made.id)).price
    assert retired.HasField("retired_at")
    assert prices.RetirePrice(pb.RetirePriceRequest(id=made.id)).price == retired
    assert holds(book) == "1000"


def test_a_price_holds_from_its_moment_on_and_no_sooner(prices, book, clock):
    put(prices, valid_from=clock.now() + timedelta(hours=1), input="3000")
    put(prices, input="2000")
    assert holds(book) == "2000"
    clock.move(minutes=59, seconds=59)
    assert holds(book) == "2000"
    clock.move(seconds=1)
    assert holds(book) == "3000"


def test_the_past_is_refused_and_what_is_absent_means_now(prices, book, clock):
    refused = clock.now() - timedelta(minutes=2)
    assert reason(put, prices, valid_from=refused) == "INVALID_ARGUMENT"
    assert put(prices).price.valid_from == moment_to_proto(clock.now())


def test_a_new_price_binds_the_next_admission_and_an_open_call_keeps_its_own(tokens, prices, book, db, clock):
    create(tokens, secret="a-token-for-tests", max_amount_nanos=10**9)
    with closing(Ledger(db, token_key=TOKEN_KEY, clock=clock)) as ledger:

        def call():
            return admission(str(uuid.uuid4()), token_hash=hash_of(db))

        before, after = call(), call()
        ledger.commit([], [before])
        made = put(prices).price
        ledger.commit([], [after])
        ledger.commit([settled(before.request_id), settled(after.request_id)], [])
    assert request_row(db, before.request_id)["cost_nanos"] == 30 * TOKEN_PRICE
    assert request_row(db, after.request_id)["cost_nanos"] == 60 * TOKEN_PRICE
    assert db.query("SELECT price_id FROM requests WHERE request_id = ?", (after.request_id,)) == [(made.id,)]
    assert reconcile(db) == []


def hash_of(db):
    ((token_hash,),) = db.query("SELECT token_hash FROM client_tokens")
    return token_hash


def test_a_price_is_for_its_provider_and_its_names(prices, book):
    put(prices, model="llama-*", provider="local", input="5")
    assert holds(book, "local", "llama-3") == "5"
    assert holds(book, "local", "LLAMA-3") == "5"
    assert holds(book, "demo", "llama-3") is None
    assert holds(book, "local", "other") is None
    put(prices, model="llama-3", provider="local", input="6")
    assert holds(book, "local", "llama-3") == "6"


def test_tiers_are_kept(prices):
    rate = pb.Rate(unit="input", amount="2.5", tiers=[pb.RateTier(above_input_tokens=200_000, amount="5")])
    made = prices.CreatePrice(pb.CreatePriceRequest(model="long", rates=[rate, pb.Rate(unit="output", amount="1")])).price
    assert rate in made.rates


@pytest.mark.parametrize(
    "rates",
    [{"input": "-1"}, {"input": "NaN"}, {"input": "one"}, {"input": ""}, {"inputs": "1"}, {"input": "1" * 65}],
)
def test_what_is_no_rate_is_refused(prices, rates):
    assert reason(put, prices, **rates) == "INVALID_ARGUMENT"


def test_a_price_needs_rates_and_a_name(prices):
    assert reason(prices.CreatePrice, pb.CreatePriceRequest(model="m")) == "INVALID_ARGUMENT"
    assert reason(put, prices, model="") == "INVALID_ARGUMENT"
    twice = pb.CreatePriceRequest(model="m", rates=[pb.Rate(unit="input", amount="1")] * 2)
    assert reason(prices.CreatePrice, twice) == "INVALID_ARGUMENT"


def test_what_is_set_is_audited_and_a_repeat_sets_nothing(prices, call):
    request_id = str(uuid.uuid4())
    made = put(prices, request_id=request_id).price
    assert put(prices, request_id=request_id).price == made
    assert reason(put, prices, request_id=request_id, input="9") == "ALREADY_EXISTS"
    prices.RetirePrice(pb.RetirePriceRequest(id=made.id))
    assert [record.action for record in audited(call, f"price:{made.id}")] == ["price.retire", "price.create"]
    assert len(prices.ListPrices(pb.ListPricesRequest(source="admin", with_retired=True)).prices) == 1


def test_prices_of_the_file_are_not_retired_here(prices, book):
    (listed,) = prices.ListPrices(pb.ListPricesRequest(source="file")).prices
    assert reason(prices.RetirePrice, pb.RetirePriceRequest(id=listed.id)) == "FAILED_PRECONDITION"
    assert reason(prices.RetirePrice, pb.RetirePriceRequest(id=listed.id + 1)) == "NOT_FOUND"
    assert reason(prices.ListPrices, pb.ListPricesRequest(source="nobody")) == "INVALID_ARGUMENT"


def test_the_book_is_listed_in_pages_by_what_is_asked_for(prices, book):
    made = [put(prices, model=f"m{number % 2}", provider="local").price for number in range(5)]
    seen, page = [], ""
    while True:
        answer = prices.ListPrices(pb.ListPricesRequest(provider="local", page_size=2, page_token=page))
        seen += answer.prices
        page = answer.next_page_token
        if not page:
            break
    assert seen == made[::-1]
    assert list(prices.ListPrices(pb.ListPricesRequest(model="m1")).prices) == [made[3], made[1]]


def test_a_warning_says_what_is_odd(prices, db):
    load_providers(db, [ProviderRow("local", "openai-compatible", "local", ("m",))])
    assert put(prices, provider="local").warnings == []
    assert list(put(prices, provider="locla", input="1").warnings) == [
        "provider: no provider is called 'locla' or priced as it now",
        "rates: there is none for output, so that side is free",
    ]


async def test_http_sets_shows_and_retires(door):
    body = {"model": "my-model", "rates": {"input": "1.00", "output": ["2", [200000, "3"]]}, "valid_from": "2027-01-01"}
    made = await door.send("POST", "/admin/prices", body)
    assert made.status == 201, made.text
    assert made.json["rates"] == {"input": "1.00", "output": ["2", [200000, "3"]]}
    assert made.json["valid_from"] == "2027-01-01T00:00:00Z"
    assert made.json["warnings"] == []
    assert [one["id"] for one in (await door.send("GET", "/admin/prices?source=admin")).json["prices"]] == [made.json["id"]]
    assert (await door.send("DELETE", f"/admin/prices/{made.json['id']}")).json["retired_at"]
    assert (await door.send("GET", "/admin/prices?source=admin")).json["prices"] == []
    assert len((await door.send("GET", "/admin/prices?source=admin&retired=true")).json["prices"]) == 1


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"rates": {"input": "1"}}, "model"),
        ({"model": "m"}, "rates"),
        ({"model": "m", "rates": {"input": 1}}, "rates"),
        ({"model": "m", "rates": {"input": ["1", ["2"]]}}, "rates"),
        ({"model": "m", "rates": {"input": "1"}, "valid_from": "soon"}, "valid_from"),
        ({"model": "m", "rates": {"input": "1"}, "valid_from": "2020-01-01"}, "valid_from"),
        ({"model": "m", "rates": {"input": "1"}, "context_window": -1}, "context_window"),
        ({"model": "m", "rates": {"input": "1"}, "price": "1"}, "price"),
    ],
)
async def test_http_names_the_wrong_field(door, body, named):
    answer = await door.send("POST", "/admin/prices", body)
    assert answer.status == 400, answer.text
    assert named in answer.json["error"]["message"]
