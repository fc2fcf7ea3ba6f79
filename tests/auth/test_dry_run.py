"""Dry runs over real mutual TLS: the decision that a real call would get at that moment, explained, and nothing done."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.clock import to_text
from gateway.errors import FailedPrecondition, InvalidArgument, ModelNotFound, NotFound, PermissionDenied
from gateway.ids import uuid7
from gateway.quota import amount
from gateway.rpc.status import from_status
from gateway.stubs.auth.v1 import auth_pb2 as pb
from tests.support.ledger import DOLLAR, MODEL, PROXY, SECRET, TOKEN_PRICE, add_token

TABLES = ("client_tokens", "requests", "tombstones", "denials", "daily_totals", "adjustments", "audit", "prices", "proxies")


def asked(**changes):
    values = {
        "token": SECRET,
        "request_model": MODEL,
        "candidates": [pb.Candidate(provider="demo", model=MODEL)],
        "input_token_ceiling": 10,
        "max_output_tokens": 90,
        "proxy_id": PROXY,
    }
    return pb.ValidateTokenRequest(**values | changes)


def dry(**changes):
    return asked(dry_run=True, **changes)


def fails(call, message):
    with pytest.raises(grpc.RpcError) as caught:
        call(message)
    return from_status(caught.value)


def everything(db):
    return {table: sorted(map(repr, db.query(f"SELECT * FROM {table}"))) for table in TABLES}


def verdicts(answer):
    return {rule.rule: pb.Verdict.Name(rule.verdict).removeprefix("VERDICT_").lower() for rule in answer.explanation.rules}


def test_a_grant_is_explained_with_its_price_and_its_hold(auth):
    answer = auth.stub("operator").ValidateToken(dry(token="", token_id=1, client_ip="10.0.0.9"))
    assert (answer.grant.held_nanos, answer.grant.token_id) == (100 * TOKEN_PRICE, 1)
    assert set(verdicts(answer).values()) == {"pass"}
    assert answer.explanation.rules[-1].value == "left 1 USD, held 0 USD, needs 0.1 USD"
    [candidate] = answer.explanation.candidates
    (price_id,) = auth.db.query("SELECT id FROM prices WHERE model = ?", (MODEL,))[0]
    assert (candidate.price_id, candidate.price_source, candidate.hold_nanos) == (price_id, "file", 100 * TOKEN_PRICE)
    assert json.loads(candidate.rates_json) == {"input": "1000", "output": "1000"}
    assert (candidate.context_window, candidate.max_output_tokens) == (100_000, 1_000)


def test_a_refusal_is_explained_with_the_rules_behind_it(auth):
    add_token(auth.db, "small-token-1", max_amount="0.05", allowed_models="gpt-*", max_parallel_requests=0)
    answer = auth.stub().ValidateToken(dry(token="small-token-1"))
    assert answer.denial.reason == pb.DENIAL_REASON_MODEL_NOT_ALLOWED
    told = verdicts(answer)
    assert (told["model_allowed"], told["max_parallel_requests"], told["budget_fits"]) == ("refuse", "would_refuse", "pass")
    [parallel] = [rule for rule in answer.explanation.rules if rule.rule == "max_parallel_requests"]
    assert (parallel.limit, parallel.value, parallel.denial.limit) == ("0", "0 of 0 open", "max_parallel_requests")


def test_an_unknown_token_is_refused_by_the_first_rule_and_the_price_is_told(auth):
    answer = auth.stub().ValidateToken(dry(token="nobody-has-this"))
    assert answer.denial.reason == pb.DENIAL_REASON_TOKEN_UNKNOWN
    assert verdicts(answer) == {"token_known": "refuse"}
    assert answer.explanation.candidates[0].price_source == "file"


def test_nothing_is_held_written_or_counted(auth):
    stub = auth.stub("operator")
    auth.stub().ValidateToken(asked(request_id=uuid7()))
    before = everything(auth.db)
    stub.ValidateToken(dry())
    stub.ValidateToken(dry(token="", token_id=1, input_token_ceiling=5_000))
    stub.ValidateToken(dry(token="nobody-has-this"))
    auth.denials.flush(auth.ledger)
    assert everything(auth.db) == before


def test_only_the_operator_names_a_token_by_its_id_and_the_operator_makes_no_calls(auth):
    for name in ("proxy", "billing"):
        assert isinstance(fails(auth.stub(name).ValidateToken, dry(token="", token_id=1)), PermissionDenied)
        assert auth.stub(name).ValidateToken(dry()).WhichOneof("result") == "grant"
    for name in ("importer", "admin"):
        assert isinstance(fails(auth.stub(name).ValidateToken, dry()), PermissionDenied)
    for message in (asked(request_id=uuid7()), asked(), asked(token="", token_id=1)):
        assert isinstance(fails(auth.stub("operator").ValidateToken, message), PermissionDenied)
    assert auth.db.query("SELECT * FROM requests") == []


def test_what_a_dry_run_cannot_be_is_named(auth):
    stub = auth.stub("operator")
    for changes in ({"request_id": uuid7()}, {"request_model": ""}, {"token_id": 1}, {"token": ""}, {"look_id": uuid7()}):
        error = fails(stub.ValidateToken, dry(**changes))
        assert isinstance(error, InvalidArgument)
        assert next(iter(changes)) in error.message
    error = fails(stub.ValidateToken, dry(token="", token_id=4711))
    assert isinstance(error, NotFound)
    assert "4711" in error.message


def test_a_deleted_token_is_not_found_by_its_id(auth):
    with auth.db.write():
        auth.db.run("UPDATE client_tokens SET deleted_at = ? WHERE id = 1", (to_text(auth.clock.now()),))
    assert isinstance(fails(auth.stub("operator").ValidateToken, dry(token="", token_id=1)), NotFound)


def test_a_batch_takes_no_dry_runs(auth):
    batch = pb.BatchValidateTokensRequest(validations=[dry(), asked(request_id=uuid7()), asked(token="", token_id=1)])
    answer = auth.stub().BatchValidateTokens(batch)
    assert [item.WhichOneof("result") for item in answer.validations] == ["error", "response", "error"]
    assert answer.validations[0].error.reason == "INVALID_ARGUMENT"


def test_a_token_written_by_hand_is_explained_as_its_first_call_would_be_decided(auth):
    add_token(auth.db, "by-hand-12345", max_amount="0.01")
    answer = auth.stub("operator").ValidateToken(dry(token="by-hand-12345"))
    assert answer.denial.reason == auth.stub().ValidateToken(asked(token="by-hand-12345", request_id=uuid7())).denial.reason


def mostly(usual, *odd):
    """So many usual values that many a call comes to the last rule."""
    return st.sampled_from([*[usual] * 9, *odd])


columns = st.fixed_dictionaries(
    {
        "max_amount": st.sampled_from([None, "0", "0.09", "0.15", "1", "3"]),
        "budget_mode": st.sampled_from(["strict", "strict", "soft"]),
        "budget_period": st.sampled_from(["total", "daily", "weekly"]),
        "enabled": mostly(1, 0),
        "expires_at": mostly(None, "2020-01-01", "2099-01-01"),
        "allowed_models": mostly(None, "thou*", "gpt-4"),
        "allowed_ips": mostly(None, "10.0.0.0/8"),
        "requests_per_minute": mostly(None, 0, 1, 2),
        "tokens_per_minute": mostly(None, 0, 100, 100),
        "max_parallel_requests": mostly(None, 0, 1, 2),
    }
)
wanted = st.fixed_dictionaries(
    {
        "input_token_ceiling": st.integers(0, 300),
        "choices": st.integers(0, 3),
        "client_ip": st.sampled_from(["", "10.0.0.9", "192.0.2.1"]),
        "input_unbounded": mostly(False, True),
        "unbounded_features": mostly([], ["web_search"]),
        "units": mostly([], ["per_image"]),
        "candidates": st.lists(
            mostly(("demo", MODEL), ("demo", "cent"), ("demo", "cent"), ("", "nobody-prices-this")), min_size=1, max_size=3
        ).map(lambda pairs: [pb.Candidate(provider=provider, model=model) for provider, model in pairs]),
    },
    optional={"max_output_tokens": st.integers(1, 500)},
)


def call_at(provider, *models):
    """A call of a tenth of a dollar at the dearest of these."""
    places = [pb.Candidate(provider=provider, model=model) for model in models]
    return {"candidates": places, "input_token_ceiling": 10, "max_output_tokens": 90}


# Few of the random ones come to the last rule with several places.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@example(columns={"max_amount": "3"}, calls=[call_at("demo", "cent"), call_at("demo", MODEL)])
@example(columns={"max_amount": "3"}, calls=[call_at("demo", "cent", MODEL), call_at("demo", MODEL, "cent")] * 2)
@example(columns={"max_amount": "0.15", "max_parallel_requests": 2}, calls=[call_at("demo", MODEL)] * 4)
@given(columns=columns, calls=st.lists(wanted, min_size=1, max_size=4))
def test_whatever_the_token_and_the_call_the_real_call_right_after_gets_the_same_answer(auth, columns, calls):
    """Calls of one token pile up, so that later ones meet holds, open calls and full minutes."""
    now = datetime.now(UTC)
    auth.clock.now = lambda: now
    secret, stub = uuid7(), auth.stub()
    add_token(auth.db, secret, **columns)
    for call in calls:
        values = {"token": secret, "request_model": MODEL, "proxy_id": PROXY} | call
        told = stub.ValidateToken(pb.ValidateTokenRequest(dry_run=True, **values))
        real = stub.ValidateToken(pb.ValidateTokenRequest(request_id=uuid7(), **values))
        refusing = [rule for rule in told.explanation.rules if rule.verdict == pb.VERDICT_REFUSE]
        assert [rule.denial.message for rule in refusing] == ([real.denial.message] if real.HasField("denial") else [])
        if real.HasField("grant"):
            assert told.explanation.rules[-1].value.endswith(f"needs {amount(real.grant.held_nanos)}")
            assert max(candidate.hold_nanos for candidate in told.explanation.candidates) == real.grant.held_nanos
        told.ClearField("explanation")
        assert told == real


def test_the_dry_run_is_of_its_moment(auth):
    """What a minute or a day changes, it changes for a dry run too."""
    add_token(auth.db, "one-a-minute-1", requests_per_minute=1)
    stub = auth.stub()
    stub.ValidateToken(asked(token="one-a-minute-1", request_id=uuid7()))
    assert stub.ValidateToken(dry(token="one-a-minute-1")).denial.limit == "requests_per_minute"
    auth.clock.offset = timedelta(days=9)
    answer = stub.ValidateToken(dry(token="one-a-minute-1"))
    assert answer.grant.held_nanos == 100 * TOKEN_PRICE
    assert answer.explanation.rules[-1].value == f"left 1 USD, held {100 * TOKEN_PRICE / DOLLAR} USD, needs 0.1 USD"


ROUTING = pb.Routing(
    providers=[
        pb.RoutedProvider(name="demo", kind="demo", patterns=["*"]),
        pb.RoutedProvider(name="local", kind="openai-compatible", patterns=["llama-*"]),
    ],
    aliases=[
        pb.RoutedAlias(
            name="fast",
            places=[pb.Candidate(provider="demo", model="demo"), pb.Candidate(provider="local", model="llama-3")],
        )
    ],
)


def beat(auth, routing, proxy_id=PROXY):
    auth.stub("proxy").Beat(pb.BeatRequest(proxy_id=proxy_id, host="here", routing=routing))


def places_of(auth, model):
    answer = auth.stub("operator").ValidateToken(dry(token="", token_id=1, request_model=model, candidates=[]))
    return [(candidate.provider, candidate.model) for candidate in answer.explanation.candidates]


def test_the_operators_dry_run_goes_where_the_proxies_go(auth):
    beat(auth, ROUTING)
    assert places_of(auth, "llama-3") == [("local", "llama-3")]
    assert places_of(auth, "gpt-4o") == [("demo", "gpt-4o")]
    assert places_of(auth, "fast") == [("demo", "demo"), ("local", "llama-3")]
    beat(auth, pb.Routing(providers=[pb.RoutedProvider(name="other", kind="openai", patterns=["gpt-*"])]), str(uuid7()))
    assert places_of(auth, "gpt-4o") == [("other", "gpt-4o")]


def test_a_model_that_nobody_serves_is_named(auth):
    beat(auth, pb.Routing(providers=[pb.RoutedProvider(name="other", kind="openai", patterns=["gpt-*"])]))
    message = dry(token="", token_id=1, request_model="claude-x", candidates=[])
    fault = fails(auth.stub("operator").ValidateToken, message)
    assert (type(fault), "serves the model 'claude-x'" in fault.message) == (ModelNotFound, True)


def test_without_a_word_of_a_proxy_the_operator_is_told_what_to_do(auth):
    message = dry(token="", token_id=1, candidates=[])
    assert "start one" in fails(auth.stub("operator").ValidateToken, message).message
    auth.stub("proxy").Beat(pb.BeatRequest(proxy_id=PROXY, host="here"))
    assert isinstance(fails(auth.stub("operator").ValidateToken, message), FailedPrecondition)


def test_a_routing_beyond_measure_does_not_fail_the_beat(auth):
    beat(auth, ROUTING)
    beat(auth, pb.Routing(providers=[pb.RoutedProvider(name="x", patterns=["p" * 100] * 3_000)]))
    assert places_of(auth, "llama-3") == [("local", "llama-3")]


def test_services_dry_runs_are_priced_by_the_model_as_their_calls_are(auth):
    beat(auth, ROUTING)
    answer = auth.stub("billing").ValidateToken(dry(proxy_id="", candidates=[]))
    assert [(candidate.provider, candidate.model) for candidate in answer.explanation.candidates] == [("", MODEL)]
