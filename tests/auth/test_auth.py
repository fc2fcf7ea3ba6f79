"""The auth service over real mutual TLS."""

from __future__ import annotations

import grpc
import grpc_testing
import pytest
from prometheus_client import CollectorRegistry

from gateway.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, TokenUnknown
from gateway.ids import uuid7
from gateway.rpc.access import Principal, acting_as
from gateway.rpc.identity import Caller
from gateway.rpc.status import from_status
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.auth.decisions import Decisions
from services.auth.metrics import AuthMetrics
from services.auth.servicer import AuthServicer
from tests.support.ledger import DOLLAR, KEY, MODEL, PROXY, SECRET, TOKEN_PRICE, add_token, request_row, token_row


def validation(request_id=None, **changes):
    values = {
        "token": SECRET,
        "request_id": uuid7() if request_id is None else request_id,
        "endpoint": "/v1/chat/completions",
        "dialect": "openai",
        "request_model": MODEL,
        "candidates": [pb.Candidate(provider="demo", model=MODEL)],
        "input_token_ceiling": 10,
        "max_output_tokens": 90,
        "proxy_id": PROXY,
    }
    return pb.ValidateTokenRequest(**values | changes)


def report(request_id, written=20, **changes):
    values = {
        "request_id": request_id,
        "outcome": pb.OUTCOME_SETTLED,
        "served": pb.Candidate(provider="demo", model=MODEL),
        "usage": [pb.UsageItem(unit="input", count=10), pb.UsageItem(unit="output", count=written)],
        "source": pb.USAGE_SOURCE_PROVIDER,
        "status": 200,
    }
    return pb.RecordUsageRequest(**values | changes)


def fails(call, message):
    with pytest.raises(grpc.RpcError) as caught:
        call(message)
    return from_status(caught.value)


def test_a_call_is_granted_held_and_charged(auth):
    stub = auth.stub()
    asked = validation()
    grant = stub.ValidateToken(asked).grant
    assert (grant.token_id, grant.held_nanos) == (1, 100 * TOKEN_PRICE)
    assert grant.prices[0].rates_json == '{"input":"1000","output":"1000"}'
    assert grant.lease.seconds == 60
    answer = stub.RecordUsage(report(asked.request_id))
    assert (answer.cost_nanos, answer.remaining_nanos, answer.state) == (30 * TOKEN_PRICE, DOLLAR - 30 * TOKEN_PRICE, "settled")


def test_a_denial_is_an_answer_with_its_figures(auth):
    denial = auth.stub().ValidateToken(validation(input_token_ceiling=5000)).denial
    assert denial.reason == pb.DENIAL_REASON_REQUEST_EXCEEDS_BUDGET
    assert (denial.remaining_nanos, denial.needed_nanos, denial.limit) == (DOLLAR, 5016 * TOKEN_PRICE, "max_amount")
    assert auth.stub().ValidateToken(validation(token="nobody-has-this")).denial.reason == pb.DENIAL_REASON_TOKEN_UNKNOWN


def test_a_batch_books_settlements_first_and_answers_each_item(auth):
    stub = auth.stub()
    first = validation(max_output_tokens=980)
    stub.ValidateToken(first)
    batch = pb.BatchValidateTokensRequest(
        settlements=[report(first.request_id), report("not-a-uuid"), report(uuid7())],
        validations=[validation(max_output_tokens=900), validation("nonsense"), validation(token="unknown-token")],
    )
    answer = stub.BatchValidateTokens(batch)
    assert [item.WhichOneof("result") for item in answer.settlements] == ["response", "error", "error"]
    assert [item.error.reason for item in answer.settlements[1:]] == ["INVALID_ARGUMENT", "NOT_FOUND"]
    assert answer.validations[0].response.grant.held_nanos == 910 * TOKEN_PRICE
    assert answer.validations[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert answer.validations[2].response.denial.reason == pb.DENIAL_REASON_TOKEN_UNKNOWN


def test_what_a_provider_wrote_never_keeps_a_call_from_being_charged(auth):
    asked = validation(user_agent="agent\0")
    auth.stub().ValidateToken(asked)
    told = report(asked.request_id, response_model="m\0", error_code="\0", usage_json='{"a":"\0"}', attempts_json="\0")
    assert auth.stub().RecordUsage(told).cost_nanos == 30 * TOKEN_PRICE
    assert auth.stub().RecordUsage(told).cost_nanos == 30 * TOKEN_PRICE
    assert auth.db.query("SELECT response_model, user_agent FROM requests") == [("m\ufffd", "agent")]


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": "ABC"},
        {"request_id": uuid7().upper()},
        {"input_token_ceiling": -1},
        {"input_token_ceiling": 10**10},
        {"max_output_tokens": 0},
        {"max_output_tokens": 10**13},
        {"choices": -1},
        {"choices": 129},
        {"request_model": ""},
        {"request_model": "x" * 257},
        {"request_model": "gpt-\0"},
        {"client_ip": "127.0.0.1\0"},
        {"candidates": [pb.Candidate(provider="demo", model="\0")]},
        {"endpoint": "/" * 201},
        {"units": ["gold"]},
        {"proxy_id": "me"},
        {"candidates": [pb.Candidate(model="m")] * 17},
        {"fixed_usage": [pb.UsageItem(unit="per_image", count=-1)]},
    ],
)
def test_a_field_out_of_range_is_named(auth, changes):
    error = fails(auth.stub().ValidateToken, validation(**changes))
    assert isinstance(error, InvalidArgument)
    assert next(iter(changes)) in error.message
    assert auth.db.query("SELECT * FROM requests") == []


def test_another_service_may_neither_repeat_nor_report_a_call_that_is_not_its_own(auth):
    asked = validation()
    auth.stub().ValidateToken(asked)
    assert isinstance(fails(auth.stub("billing").ValidateToken, asked), AlreadyExists)
    assert isinstance(fails(auth.stub("billing").RecordUsage, report(asked.request_id)), PermissionDenied)
    assert token_row(auth.db)["held_nanos"] == 100 * TOKEN_PRICE


def test_an_internal_service_gets_a_lease_and_renews_it(auth):
    stub = auth.stub("billing")
    asked = validation(proxy_id="", candidates=[])
    assert stub.ValidateToken(asked).grant.lease.seconds == 600
    renewed = stub.RenewLease(pb.RenewLeaseRequest(request_ids=[asked.request_id, uuid7()]))
    assert list(renewed.request_ids) == [asked.request_id]
    assert [(lease.request_id, lease.beat) for lease in auth.ledger.leases()] == [(asked.request_id, 1)]


def test_unadmitted_usage_needs_the_right_in_the_certificate(auth):
    auth.stub().ValidateToken(validation())
    request_id = uuid7()
    message = report(request_id, token_id=1)
    assert isinstance(fails(auth.stub("billing").RecordUsage, message), PermissionDenied)
    assert auth.stub("importer").RecordUsage(message).cost_nanos == 30 * TOKEN_PRICE
    assert isinstance(fails(auth.stub("importer").RecordUsage, report(uuid7())), NotFound)


def test_a_holder_reads_the_books_of_any_token_of_his_own(auth):
    stub = auth.stub()
    add_token(auth.db, "switched-off-token", enabled=0, amount_spent="0.25")
    usage = stub.GetTokenUsage(pb.GetTokenUsageRequest(token="switched-off-token", details=True))
    assert (usage.status, usage.amount_spent_nanos, usage.remaining_nanos) == ("disabled", DOLLAR // 4, DOLLAR * 3 // 4)
    asked = validation()
    stub.ValidateToken(asked)
    stub.RecordUsage(report(asked.request_id))
    usage = stub.GetTokenUsage(pb.GetTokenUsageRequest(token=SECRET, details=True))
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 20, 30)
    assert [(m.model, m.requests, m.total_tokens, m.amount_spent_nanos) for m in usage.models] == [
        (MODEL, 1, 30, 30 * TOKEN_PRICE)
    ]
    assert [(call.request_id, call.status) for call in usage.recent] == [(asked.request_id, "settled")]
    assert isinstance(fails(stub.GetTokenUsage, pb.GetTokenUsageRequest(token="nobody")), TokenUnknown)


def test_models_are_those_that_a_provider_serves_and_the_token_may_use(auth):
    add_token(auth.db, "for-cents-only", allowed_models="ce*,fast")
    served = [pb.ProviderModels(provider="demo", patterns=["*"])]
    everything = auth.stub().ListModels(pb.ListModelsRequest(token=SECRET, providers=served, names=["fast"]))
    assert [model.name for model in everything.models] == ["cent", "fast", MODEL]
    some = auth.stub().ListModels(pb.ListModelsRequest(token="for-cents-only", providers=served, names=["fast"]))
    assert [(model.name, model.provider) for model in some.models] == [("cent", "demo"), ("fast", "gateway")]
    unknown = auth.stub().ListModels(pb.ListModelsRequest(token="nobody", providers=served))
    assert unknown.denial.reason == pb.DENIAL_REASON_TOKEN_UNKNOWN


def test_refusals_are_counted_behind_the_calls(auth):
    for _ in range(3):
        auth.stub().ValidateToken(validation(input_token_ceiling=5000, client_ip="10.0.0.9"))
    auth.denials.flush(auth.ledger)
    rows = auth.db.query("SELECT token_id, reason, count, last_ip FROM denials")
    assert rows == [(1, "REQUEST_EXCEEDS_BUDGET", 3, "10.0.0.9")]


def test_grpc_testing_drives_the_servicer_alone(auth):
    """The servicer needs nothing but its ledger: no server, no certificate, no network."""
    from gateway.stubs.auth.v1 import auth_pb2

    decisions = Decisions(ledger=auth.ledger, denials=auth.denials, metrics=AuthMetrics(CollectorRegistry()))
    servicer = AuthServicer(db=auth.db, ledger=auth.ledger, decisions=decisions, token_key=KEY, clock=auth.clock)
    service = auth_pb2.DESCRIPTOR.services_by_name["AuthService"]
    server = grpc_testing.server_from_dictionary({service: servicer}, grpc_testing.strict_real_time())
    asked = validation()

    def invoke(name, message):
        call = server.invoke_unary_unary(service.methods_by_name[name], (), message, 5)
        response, _, code, details = call.termination()
        assert code is grpc.StatusCode.OK, details
        return response

    original = servicer.ValidateToken
    servicer.ValidateToken = lambda request, context: _as_proxy(original, request, context)
    servicer.RecordUsage = lambda request, context, original=servicer.RecordUsage: _as_proxy(original, request, context)
    assert invoke("ValidateToken", asked).grant.held_nanos == 100 * TOKEN_PRICE
    assert invoke("RecordUsage", report(asked.request_id)).cost_nanos == 30 * TOKEN_PRICE
    assert request_row(auth.db, asked.request_id)["state"] == "settled"


def _as_proxy(handler, request, context):
    with acting_as(Principal("service:proxy", Caller("proxy", frozenset(), frozenset()))):
        return handler(request, context)
