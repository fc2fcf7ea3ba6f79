"""The typed client against a real auth over mutual TLS: what it gives, what it raises, and what the ledger then says."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal

import grpc
import pytest

from gateway.client import Credentials, Gateway, Outcome, Receipt, Source, State, text_ceiling
from gateway.errors import (
    AlreadyExists,
    AuthUnavailable,
    BudgetExhausted,
    BudgetReserved,
    FailedPrecondition,
    InvalidArgument,
    ModelNotAllowed,
    NotFound,
    Overloaded,
    PermissionDenied,
    RequestExceedsBudget,
    RequestWithdrawn,
    TokenDisabled,
    TokenUnknown,
    Unauthenticated,
)
from gateway.ids import uuid7
from gateway.leases import LeaseWatch
from gateway.rpc.identity import create_authority, issue
from gateway.rpc.server import bind, build_server
from gateway.stubs.auth.v1 import auth_pb2_grpc
from services.auth import wire
from services.auth.access import ACCESS, SERVICE
from tests.gateway.client_harness import real_auth
from tests.suite.stack import wait_for
from tests.support.ledger import DOLLAR, MODEL, SECRET, TOKEN_PRICE, request_row, token_row


@pytest.fixture
def auth(tmp_path):
    with real_auth(tmp_path) as running:
        running.add_token(SECRET)
        yield running


@pytest.fixture
def gateway(auth):
    with auth.gateway(timeout=5.0) as client:
        yield client


def test_a_call_is_granted_held_and_charged_what_the_grant_foretold(auth, gateway):
    grant = gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=90, endpoint="/summaries")
    assert (grant.token_id, grant.held_nanos, grant.max_output_tokens, grant.lease) == (1, 100 * TOKEN_PRICE, None, 600.0)
    assert token_row(auth.db)["held_nanos"] == 100 * TOKEN_PRICE
    assert grant.cost({"input": 10, "output": 20}) == Decimal("0.03")
    receipt = gateway.record_usage(grant, input_tokens=10, output_tokens=20)
    assert receipt == Receipt(grant.request_id, True, State.SETTLED, 30 * TOKEN_PRICE, DOLLAR - 30 * TOKEN_PRICE)
    row = request_row(auth.db, grant.request_id)
    assert (row["state"], row["usage_source"], row["input_tokens"], row["output_tokens"]) == ("settled", "counted", 10, 20)
    assert gateway.record_usage(grant.request_id, input_tokens=10, output_tokens=20) == receipt
    with pytest.raises(AlreadyExists, match="other figures"):
        gateway.record_usage(grant, input_tokens=10, output_tokens=21)


def test_text_is_bounded_by_its_bytes(auth, gateway):
    assert text_ceiling("hello") == 5 + 16
    assert text_ceiling(["hé", "ﷺ"]) == (3 + 16) + (33 + 16)
    grant = gateway.validate(SECRET, model=MODEL, input_text="hello", max_output_tokens=1)
    assert grant.held_nanos == 22 * TOKEN_PRICE


def test_denials_are_raised_as_their_own_classes_with_their_figures(auth, gateway):
    auth.add_token("spent-token", amount_spent="1")
    auth.add_token("narrow-token", allowed_models="other")
    auth.add_token("off-token", enabled=0)
    for token, kind in (("nobody-has-this", TokenUnknown), ("spent-token", BudgetExhausted), ("off-token", TokenDisabled)):
        with pytest.raises(kind):
            gateway.validate(token, model=MODEL, input_tokens=1)
        with pytest.raises(kind):
            gateway.check(token)
    with pytest.raises(ModelNotAllowed):
        gateway.check("narrow-token", model=MODEL)
    with pytest.raises(RequestExceedsBudget) as too_large:
        gateway.validate(SECRET, model=MODEL, input_tokens=5000)
    assert too_large.value.metadata["remaining_nanos"] == str(DOLLAR)
    gateway.validate(SECRET, model=MODEL, input_tokens=990, max_output_tokens=10)
    with pytest.raises(BudgetReserved) as held:
        gateway.validate(SECRET, model=MODEL, input_tokens=500, max_output_tokens=10)
    assert held.value.retry_after == 1.0


def test_a_look_holds_nothing_and_writes_nothing(auth, gateway):
    assert gateway.check(SECRET, model=MODEL) == 1
    assert token_row(auth.db)["held_nanos"] == 0
    assert auth.db.query("SELECT count(*) FROM requests")[0][0] == 0


def test_the_same_request_id_gives_the_same_grant_and_another_question_is_refused(gateway):
    request_id = uuid7()
    first = gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=5, request_id=request_id)
    assert gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=5, request_id=request_id) == first
    with pytest.raises(AlreadyExists):
        gateway.validate(SECRET, model=MODEL, input_tokens=11, max_output_tokens=5, request_id=request_id)


def test_what_cannot_be_asked_is_refused_before_it_is_sent(gateway):
    with pytest.raises(InvalidArgument, match="input_text"):
        gateway.validate(SECRET, model=MODEL)
    with pytest.raises(InvalidArgument, match="request_id"):
        gateway.validate(SECRET, model=MODEL, input_tokens=1, request_id="MINE")
    with pytest.raises(InvalidArgument, match="does not fit"):
        gateway.validate(SECRET, model=MODEL, input_tokens=2**70)
    with pytest.raises(InvalidArgument, match="what was used"):
        gateway.record_usage(uuid7())
    with pytest.raises(InvalidArgument, match="takes no usage"):
        gateway.record_usage(uuid7(), outcome=Outcome.RELEASED, input_tokens=4)
    grant = gateway.validate(SECRET, model=MODEL, input_tokens=1, max_output_tokens=1)
    with pytest.raises(InvalidArgument, match="no candidate"):
        grant.cost({"input": 1}, served=("demo", "another"))


def test_a_tokens_books_say_what_it_used(gateway):
    with gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=90) as call:
        call.usage(input_tokens=10, output_tokens=20)
    books = gateway.usage(SECRET, details=True)
    assert (books.token_id, books.status, books.total_tokens, books.held_nanos) == (1, "active", 30, 0)
    assert (books.amount_spent_nanos, books.remaining_nanos) == (30 * TOKEN_PRICE, DOLLAR - 30 * TOKEN_PRICE)
    assert [(model.model, model.requests) for model in books.models] == [(MODEL, 1)]
    assert [(recent.request_id, recent.status) for recent in books.recent] == [(call.request_id, "settled")]
    assert books.recent[0].at.tzinfo is not None
    with pytest.raises(TokenUnknown):
        gateway.usage("nobody-has-this")


class Broken(Exception):
    """What a block raises."""


def test_a_block_charges_what_it_last_said_even_when_it_fails_afterwards(auth, gateway):
    with pytest.raises(Broken), gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=90) as call:
        call.usage(input_tokens=10, output_tokens=1)
        call.usage(input_tokens=10, output_tokens=5, source=Source.ESTIMATED)
        raise Broken
    row = request_row(auth.db, call.request_id)
    assert (row["state"], row["cost_nanos"], row["usage_source"]) == ("settled", 15 * TOKEN_PRICE, "estimated")
    assert row["error_code"] == "Broken"


def test_a_block_that_says_nothing_is_charged_its_hold_and_never_free(auth, gateway, caplog):
    with pytest.raises(Broken), gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=90) as call:
        raise Broken
    row = request_row(auth.db, call.request_id)
    assert (row["state"], row["cost_nanos"], row["usage_source"]) == ("settled", 100 * TOKEN_PRICE, "estimated")
    with caplog.at_level(logging.WARNING), gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=90) as silent:
        pass
    assert request_row(auth.db, silent.request_id)["cost_nanos"] == 100 * TOKEN_PRICE
    assert "call_not_reported" in caplog.text
    assert SECRET not in caplog.text


def test_a_block_that_releases_costs_nothing(auth, gateway):
    with pytest.raises(Broken), gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=90) as call:
        call.release()
        raise Broken
    assert request_row(auth.db, call.request_id)["state"] == "released"
    assert call.receipt == Receipt(call.request_id, True, State.RELEASED, 0, DOLLAR)
    assert token_row(auth.db)["held_nanos"] == 0


def test_a_denied_call_never_enters_its_block(gateway):
    entered = False
    with pytest.raises(TokenUnknown), gateway.call("nobody-has-this", model=MODEL, input_tokens=1):
        entered = True
    assert not entered


def test_threads_that_race_for_a_budget_never_exceed_it(auth, gateway):
    """$1.00, 150 calls of $0.01 from 30 threads: exactly 100 pass."""
    outcomes: list[str] = []

    def work() -> None:
        for _ in range(5):
            try:
                with gateway.call(SECRET, model="cent", input_tokens=0, max_output_tokens=16) as call:
                    call.usage(usage={"per_request": 1})
                outcomes.append("passed")
            except (BudgetReserved, BudgetExhausted, RequestExceedsBudget) as refusal:
                outcomes.append(refusal.reason)

    threads = [threading.Thread(target=work) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 150
    books = gateway.usage(SECRET)
    assert outcomes.count("passed") == 100
    assert (books.amount_spent_nanos, books.held_nanos) == (DOLLAR, 0)


def test_without_auth_every_method_fails_within_its_deadline_and_works_again_soon_after(auth):
    with auth.gateway() as gateway:
        gateway.check(SECRET)
        auth.stop()
        for ask in (
            lambda: gateway.validate(SECRET, model=MODEL, input_tokens=1),
            lambda: gateway.check(SECRET),
            lambda: gateway.usage(SECRET),
            lambda: gateway.renew(uuid7()),
        ):
            started = time.monotonic()
            with pytest.raises(AuthUnavailable) as away:
                ask()
            assert time.monotonic() - started < 1.5
            assert away.value.retry_after == 1.0
        assert f"auth at {auth.address} cannot be reached: nothing listens there" in away.value.message
        auth.start()
        started = time.monotonic()
        wait_for("the gateway", lambda: _passes(lambda: gateway.check(SECRET)), 5.0)
        assert time.monotonic() - started < 2.0


def _passes(ask):
    try:
        ask()
    except AuthUnavailable:
        return False
    return True


def test_what_was_used_during_an_outage_is_booked_once_when_auth_is_back(auth):
    with auth.gateway(timeout=0.3) as gateway:
        grants = [gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20) for _ in range(3)]
        auth.stop()
        receipts = [gateway.record_usage(grant, input_tokens=10, output_tokens=5) for grant in grants]
        assert [(receipt.delivered, receipt.cost_nanos) for receipt in receipts] == [(False, None)] * 3
        assert {item.reason for item in gateway.flush(0.05)} == {"AUTH_UNAVAILABLE"}
        auth.start()
        assert gateway.flush(5.0) == []
    assert [request_row(auth.db, grant.request_id)["cost_nanos"] for grant in grants] == [15 * TOKEN_PRICE] * 3
    assert token_row(auth.db)["total_spent_nanos"] == 45 * TOKEN_PRICE


def test_closing_says_what_was_not_delivered(auth, caplog):
    gateway = auth.gateway(timeout=0.1)
    grant = gateway.validate(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20, timeout=5.0)
    auth.stop()
    gateway.record_usage(grant, input_tokens=10, output_tokens=5)
    with caplog.at_level(logging.ERROR):
        left = gateway.close(0.1)
    assert [(item.request_id, item.reason) for item in left] == [(grant.request_id, "AUTH_UNAVAILABLE")]
    assert grant.request_id in caplog.text
    assert gateway.close() == []
    with pytest.raises(FailedPrecondition, match="closed"):
        gateway.check(SECRET)
    auth.start()


def test_what_auth_refuses_in_the_background_is_told_by_flush(auth):
    with auth.gateway(timeout=0.2) as gateway:
        auth.stop()
        gateway.record_usage(unknown := uuid7(), input_tokens=1)
        auth.start()
        assert [(item.request_id, item.reason) for item in gateway.flush(5.0)] == [(unknown, "NOT_FOUND")]
        assert gateway.flush() == []


def test_the_memory_for_reports_is_bounded(auth):
    gateway = auth.gateway(timeout=0.1, max_pending=2)
    auth.stop()
    for _ in range(2):
        gateway.record_usage(uuid7(), input_tokens=1)
    with pytest.raises(Overloaded):
        gateway.record_usage(uuid7(), input_tokens=1)
    assert len(gateway.close(0.05)) == 2
    auth.start()


def test_a_call_that_nobody_heard_the_answer_of_is_withdrawn(auth, monkeypatch):
    """auth admits the call, but too late for the caller: the money comes back without waiting for the lease."""
    made_here = uuid7()
    monkeypatch.setattr("gateway.client.sync.uuid7", lambda: made_here)
    ask = {"model": MODEL, "input_tokens": 10, "max_output_tokens": 20}
    with auth.gateway(timeout=5.0) as gateway:
        gateway.check(SECRET)
        with auth.db.write(), pytest.raises(AuthUnavailable, match="in time"):  # the ledger waits for the database
            gateway.validate(SECRET, timeout=0.3, **ask)
        assert gateway.flush(10.0) == []
        wait_for("the money", lambda: token_row(auth.db)["held_nanos"] == 0)
        with pytest.raises((RequestWithdrawn, AlreadyExists)):
            gateway.validate(SECRET, request_id=made_here, **ask)


def test_a_call_with_an_id_of_the_callers_own_stays_his_to_ask_for_again(auth):
    """It may be in use already: taking it back would make what it used free."""
    ask = {"model": MODEL, "input_tokens": 10, "max_output_tokens": 20, "request_id": uuid7()}
    with auth.gateway(timeout=5.0) as gateway:
        first = gateway.validate(SECRET, **ask)
        with auth.db.write(), pytest.raises(AuthUnavailable, match="in time"):
            gateway.validate(SECRET, timeout=0.3, **ask)
        assert gateway.flush() == []
        assert gateway.validate(SECRET, **ask) == first
        assert gateway.record_usage(first, input_tokens=10).cost_nanos == 10 * TOKEN_PRICE


def test_a_block_keeps_its_lease_and_a_bare_grant_loses_it(auth, gateway, monkeypatch):
    monkeypatch.setattr(wire, "SERVICE_LEASE_SECONDS", 1)
    watch = LeaseWatch(patience=15, most_per_look=10)  # as the sweeper of auth keeps it

    def look():
        gone = watch.look({lease.request_id: lease.beat for lease in auth.ledger.leases()}, auth.clock.seconds)
        auth.ledger.expire(request_ids=gone)
        auth.clock.seconds += 10.0

    def beat(request_id):
        return auth.db.query("SELECT lease_beat FROM requests WHERE request_id = ?", (request_id,))[0][0]

    bare = gateway.validate(SECRET, model=MODEL, input_tokens=1, max_output_tokens=1)
    with gateway.call(SECRET, model=MODEL, input_tokens=10, max_output_tokens=20) as call:
        for _ in range(4):
            look()
            seen = beat(call.request_id)
            wait_for("a renewal", lambda seen=seen: beat(call.request_id) > seen, 10.0)
        look()
        assert request_row(auth.db, call.request_id)["state"] == "admitted"
        assert request_row(auth.db, bare.request_id)["state"] == "expired"
        assert gateway.renew(call.grant, bare) == {call.request_id}
        call.usage(input_tokens=10, output_tokens=5)
    assert request_row(auth.db, call.request_id)["cost_nanos"] == 15 * TOKEN_PRICE
    gateway.record_usage(bare, input_tokens=1)  # late, and still better than the provisional charge
    assert request_row(auth.db, bare.request_id)["cost_nanos"] == TOKEN_PRICE


def test_usage_of_a_call_that_was_never_admitted_needs_its_right(auth, gateway):
    with pytest.raises(NotFound, match="never admitted"):
        gateway.record_usage(uuid7(), input_tokens=1)
    with pytest.raises(PermissionDenied, match="gateway identity create billing --force --record-unadmitted"):
        gateway.record_usage(uuid7(), input_tokens=1, token_id=1, served=("demo", MODEL))
    auth.issue("importer", ("RecordUsage",), ("record_unadmitted",))
    with auth.gateway("importer", timeout=5.0) as importer:
        receipt = importer.record_usage(uuid7(), input_tokens=10, token_id=1, served=("demo", MODEL))
    assert receipt.cost_nanos == 10 * TOKEN_PRICE


def test_the_loss_of_one_of_two_auths_is_not_noticed(auth):
    other = auth.another()
    both = f"{auth.address},127.0.0.1:{other.port}"
    with Gateway(both, identity=auth.folder / "billing") as gateway:
        wait_for("auth", lambda: _passes(lambda: gateway.check(SECRET)))
        for number in range(30):
            if number == 10:
                other.stop()
            with gateway.call(SECRET, model=MODEL, input_tokens=1, max_output_tokens=1) as call:
                call.usage(input_tokens=1)
            assert call.receipt.delivered
    assert token_row(auth.db)["total_spent_nanos"] == 30 * TOKEN_PRICE


# -- identities --------------------------------------------------------------------------------------------------------------


def test_a_right_too_few_is_refused_with_the_command_that_gives_it(auth):
    auth.issue("reader", ("GetTokenUsage",))
    with auth.gateway("reader", timeout=5.0) as reader:
        assert reader.usage(SECRET).status == "active"
        with pytest.raises(PermissionDenied) as refused:
            reader.validate(SECRET, model=MODEL, input_tokens=1)
    wanted = "`gateway identity create reader --force --out FOLDER --allow-method GetTokenUsage --allow-method ValidateToken`"
    assert wanted in refused.value.message


def test_without_an_identity_the_error_says_how_to_get_one(tmp_path, auth):
    with pytest.raises(Unauthenticated, match=r"gateway identity create NAME --out"):
        Gateway(identity=tmp_path / "nowhere")
    with pytest.raises(Unauthenticated, match=r"GATEWAY_IDENTITY_DIR is not set.*gateway identity create"):
        Gateway.from_env({})
    old = auth.issue("old", ("ValidateToken",), days=0)
    with pytest.raises(Unauthenticated, match=r"expired on .*gateway identity create old --force"):
        Gateway(identity=old)
    (old / "cert.pem").write_text("nothing")
    with pytest.raises(Unauthenticated, match="no readable certificate"):
        Gateway(identity=old)


def test_the_environment_says_where_auth_is_and_who_we_are(auth):
    environment = {"GATEWAY_AUTH_ADDRESS": auth.address, "GATEWAY_IDENTITY_DIR": str(auth.folder / "billing")}
    with Gateway.from_env(environment, timeout=5.0) as gateway:
        assert gateway.check(SECRET) == 1


@pytest.fixture
def elsewhere(tmp_path):
    """An identity of another installation."""
    create_authority(tmp_path / "other" / "ca")
    issue(tmp_path / "other" / "ca", "billing", tmp_path / "other" / "billing", rpcs=("ValidateToken",))
    return tmp_path / "other" / "billing"


def why(address, identity):
    with Gateway(address, identity=identity, timeout=0.3) as gateway, pytest.raises(AuthUnavailable) as away:
        gateway.check(SECRET)
    return away.value.message


def test_a_failed_handshake_says_what_is_wrong(auth, elsewhere, tmp_path):
    assert "was not issued by" in why(auth.address, elsewhere)
    (elsewhere / "ca.pem").write_bytes((auth.folder / "billing" / "ca.pem").read_bytes())
    assert "does not know the certificate" in why(auth.address, elsewhere)
    mixed = auth.issue("mixed", ("ValidateToken",))
    billing = Credentials.load(auth.folder / "billing")
    assert "is not the key of" in why(auth.address, replace(Credentials.load(mixed), key=billing.key))
    (mixed / "key.pem").write_bytes(billing.key)
    with pytest.raises(Unauthenticated, match="is not the key of"):
        Credentials.load(mixed)
    plain = grpc.server(ThreadPoolExecutor(1))
    port = plain.add_insecure_port("127.0.0.1:0")
    plain.start()
    assert "speaks no TLS" in why(f"127.0.0.1:{port}", auth.folder / "billing")
    plain.stop(0).wait()


def test_another_server_of_the_installation_is_not_taken_for_auth(auth):

    server = build_server(auth.identities["admin"], [SERVICE], ACCESS)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(auth_pb2_grpc.AuthServiceServicer(), server)
    port = bind(server, "127.0.0.1:0", auth.identities["admin"])
    server.start()
    assert "it is not auth" in why(f"127.0.0.1:{port}", auth.folder / "billing")
    server.stop(0).wait()
