"""Client tokens over gRPC, against a real server and database."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
import pytest

from gateway import tokens as secrets
from gateway.price_rows import ProviderRow
from gateway.rpc.status import from_status
from gateway.storage import models
from gateway.storage.prices import load_providers
from gateway.stubs.admin.v1 import tokens_pb2
from services.admin.wire import moment_to_proto
from tests.admin.calls import DOLLAR, audited, create, delete, get, hash_in, reason, rotate, top_up, update
from tests.admin.conftest import TOKEN_KEY

# -- making -------------------------------------------------------------------------------------------------------------------


def test_a_token_is_made_and_its_secret_told_once(tokens, db):
    made = create(tokens, name="app", max_amount_nanos=5 * DOLLAR, allowed_models=["gpt-4*"])
    assert secrets.is_plausible(made.secret)
    assert made.secret.startswith("sk-gz-")
    assert made.token.display_hint == f"sk-gz-…{made.secret[-4:]}"
    assert not made.token.weak
    assert made.token.status == tokens_pb2.TOKEN_STATUS_ACTIVE
    assert made.token.remaining_nanos == 5 * DOLLAR
    assert get(tokens, made.token.id) == made.token
    assert hash_in(db, made.token.id) == secrets.hash_secret(TOKEN_KEY, made.secret).hex()


def test_no_file_holds_a_generated_secret(tokens, db, tmp_path):
    told = [create(tokens).secret for _ in range(20)]
    told.append(rotate(tokens, 1).secret)
    db.tend(last=True)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [secret for secret in told if secret.encode() in stored or secret[6:30].encode() in stored]


def test_a_token_without_a_name_is_called_by_its_id(tokens):
    made = create(tokens)
    assert made.token.name == f"token-{made.token.id}"
    assert update(tokens, made.token.id, "name", name="app").token.name == "app"
    assert update(tokens, made.token.id, "name").token.name == f"token-{made.token.id}"


def test_a_chosen_secret_is_kept_as_a_hash_with_no_hint(tokens):
    short = create(tokens, secret="new-token")
    assert (short.secret, short.token.weak, short.token.display_hint) == ("new-token", True, "")
    long = create(tokens, secret="a-chosen-secret-of-more-than-32-characters")
    assert (long.token.weak, long.token.display_hint) == (False, "")


@pytest.mark.parametrize(
    "secret", ["short77", "has a space", "tab\tin-it", "ümlaut-secret", "x" * 257, "sk-gz-not-generated", "nul\0in-it-"]
)
def test_a_secret_that_may_not_be_chosen_is_refused(tokens, secret):
    assert reason(create, tokens, secret=secret) == "INVALID_ARGUMENT"


def test_a_generated_looking_secret_may_be_chosen_when_its_checksum_is_right(tokens):
    secret = secrets.generate()
    assert create(tokens, secret=secret).secret == secret


def test_two_live_tokens_never_have_the_same_secret_and_a_deleted_one_frees_it(tokens):
    first = create(tokens, secret="my-test-token-12345")
    assert reason(create, tokens, secret="my-test-token-12345") == "ALREADY_EXISTS"
    delete(tokens, first.token.id)
    assert create(tokens, secret="my-test-token-12345").token.id != first.token.id


def test_twenty_at_once_choose_the_same_secret_and_one_gets_it(tokens):
    def choose(_):
        try:
            return create(tokens, secret="the-same-for-all").token.id
        except grpc.RpcError as error:
            return from_status(error).reason

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(choose, range(20)))
    assert sorted(map(str, outcomes))[1:] == ["ALREADY_EXISTS"] * 19


def test_a_token_may_be_made_switched_off(tokens):
    assert create(tokens, disabled=True).token.status == tokens_pb2.TOKEN_STATUS_DISABLED


@pytest.mark.parametrize(
    "fields",
    [
        {"id": 7}, {"amount_spent_nanos": 1}, {"held_nanos": 1}, {"version": 3}, {"enabled": True}, {"weak": True},
        {"display_hint": "x"}, {"created_at": {"seconds": 5}}, {"request_count": 5}, {"remaining_nanos": 5}, {"status": 1},
        {"name": "x" * 10_240}, {"name": "a\nb"}, {"max_amount_nanos": -1}, {"max_amount_nanos": 2**63 - 1}, {"budget_mode": 9},
        {"expires_at": {"seconds": 2**60}}, {"allowed_models": ["x" * 1000]}, {"request_id": "no uuid"},
    ],
)  # fmt: skip
def test_what_a_new_token_does_not_take_is_refused_and_leaves_nothing(tokens, db, fields):
    assert reason(create, tokens, **fields) == "INVALID_ARGUMENT"
    assert not models.ClientToken.select().exists(db)


def test_a_past_day_and_an_unserved_model_are_taken_with_a_warning(tokens, db, clock):
    load_providers(db, [ProviderRow("demo", "demo", "demo", ("demo", "claude-*"))])
    made = create(tokens, expires_at=moment_to_proto(clock.now() - timedelta(days=1)), allowed_models=["claude-3", "gpt-4"])
    assert made.token.status == tokens_pb2.TOKEN_STATUS_EXPIRED
    assert len(made.warnings) == 2
    assert "has passed" in made.warnings[0]
    assert "'gpt-4'" in made.warnings[1]
    assert update(tokens, made.token.id, "allowed_models", allowed_models=["gpt-5"]).warnings
    assert not update(tokens, made.token.id, "name", name="x").warnings


# -- changing -----------------------------------------------------------------------------------------------------------------


def test_a_change_touches_the_fields_of_the_mask_and_no_other(tokens):
    made = create(tokens, name="app", customer="acme", max_amount_nanos=DOLLAR).token
    changed = update(
        tokens, made.id, "max_amount_nanos", "budget_mode", max_amount_nanos=2 * DOLLAR, budget_mode=2, customer="other"
    ).token
    assert (changed.name, changed.customer, changed.max_amount_nanos) == ("app", "acme", 2 * DOLLAR)
    assert changed.budget_mode == tokens_pb2.BUDGET_MODE_SOFT
    assert changed.version == made.version + 1


def test_a_field_that_is_named_and_absent_is_cleared(tokens, clock):
    made = create(
        tokens, name="app", remark="x", max_amount_nanos=DOLLAR, expires_at=moment_to_proto(clock.now()), allowed_models=["a"]
    ).token
    cleared = update(tokens, made.id, "max_amount_nanos", "expires_at", "allowed_models", "remark").token
    assert not cleared.HasField("max_amount_nanos")
    assert not cleared.HasField("remaining_nanos")
    assert not cleared.HasField("expires_at")
    assert (list(cleared.allowed_models), cleared.remark) == ([], "")


def test_a_change_of_what_someone_else_changed_meanwhile_is_refused(tokens):
    made = create(tokens).token
    update(tokens, made.id, "name", version=made.version, name="first")
    assert reason(update, tokens, made.id, "name", version=made.version, name="second") == "VERSION_MISMATCH"
    assert get(tokens, made.id).name == "first"


@pytest.mark.parametrize(
    "path", ["id", "amount_spent_nanos", "token_hash", "created_at", "version", "secret", "held_nanos", "x" * 5000, ""]
)
def test_what_cannot_be_changed_is_refused(tokens, path):
    made = create(tokens).token
    assert reason(update, tokens, made.id, path) == "INVALID_ARGUMENT"
    assert reason(update, tokens, made.id) == "INVALID_ARGUMENT"
    assert get(tokens, made.id) == made


def test_a_budget_may_be_lowered_below_what_is_spent_and_a_top_up_revives_it(tokens, db):
    made = create(tokens, max_amount_nanos=5 * DOLLAR).token
    row = models.ClientToken
    row.update(period_spent_nanos=2 * DOLLAR, total_spent_nanos=2 * DOLLAR).where(row.id == made.id).execute(db)
    lowered = update(tokens, made.id, "max_amount_nanos", max_amount_nanos=DOLLAR).token
    assert (lowered.status, lowered.remaining_nanos) == (tokens_pb2.TOKEN_STATUS_EXHAUSTED, -DOLLAR)
    raised = top_up(tokens, made.id, 3 * DOLLAR)
    assert (raised.status, raised.max_amount_nanos) == (tokens_pb2.TOKEN_STATUS_ACTIVE, 4 * DOLLAR)
    assert raised.amount_spent_nanos == 2 * DOLLAR


@pytest.mark.parametrize("amount", [0, -1, 2**63 - 1])
def test_a_top_up_takes_an_amount_above_nothing(tokens, amount):
    made = create(tokens, max_amount_nanos=DOLLAR).token
    assert reason(top_up, tokens, made.id, amount) == "INVALID_ARGUMENT"
    assert get(tokens, made.id).max_amount_nanos == DOLLAR


def test_a_token_without_a_budget_cannot_be_topped_up(tokens):
    assert reason(top_up, tokens, create(tokens).token.id, DOLLAR) == "FAILED_PRECONDITION"


def test_top_ups_at_once_all_count(tokens):
    made = create(tokens, max_amount_nanos=0).token
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: top_up(tokens, made.id, DOLLAR), range(24)))
    assert get(tokens, made.id).max_amount_nanos == 24 * DOLLAR


def test_the_switch_goes_on_off_and_the_other_way_round(tokens):
    made = create(tokens).token

    def switch(enabled=None):
        return tokens.SetTokenEnabled(tokens_pb2.SetTokenEnabledRequest(id=made.id, enabled=enabled)).token

    assert switch(False).status == tokens_pb2.TOKEN_STATUS_DISABLED
    again = switch(False)
    assert again.version == made.version + 1
    assert switch().status == tokens_pb2.TOKEN_STATUS_ACTIVE
    assert switch().status == tokens_pb2.TOKEN_STATUS_DISABLED


def test_a_new_secret_kills_the_old_one(tokens, db):
    made = create(tokens)
    turned = rotate(tokens, made.token.id)
    assert turned.secret != made.secret
    assert hash_in(db, made.token.id) == secrets.hash_secret(TOKEN_KEY, turned.secret).hex()
    assert turned.token.display_hint.endswith(turned.secret[-4:])


def test_a_deleted_token_is_gone_for_everybody_and_its_history_stays(tokens, db, call):
    made = create(tokens, name="app")
    delete(tokens, made.token.id)
    delete(tokens, made.token.id)
    assert hash_in(db, made.token.id) is None
    assert tokens.ListTokens(tokens_pb2.ListTokensRequest()).tokens == []
    for attempt in (
        lambda: get(tokens, made.token.id),
        lambda: update(tokens, made.token.id, "name"),
        lambda: rotate(tokens, made.token.id),
        lambda: top_up(tokens, made.token.id, 1),
        lambda: tokens.SetTokenEnabled(tokens_pb2.SetTokenEnabledRequest(id=made.token.id)),
    ):
        assert reason(attempt) == "NOT_FOUND"
    assert [record.action for record in audited(call, f"token:{made.token.id}")] == ["token.delete", "token.create"]


@pytest.mark.parametrize("token_id", [0, -1, 7, 2**63 - 1])
def test_an_unknown_id_is_not_found(tokens, token_id):
    assert reason(get, tokens, token_id) == "NOT_FOUND"
    assert reason(delete, tokens, token_id) == "NOT_FOUND"


# -- repeats ------------------------------------------------------------------------------------------------------------------


def test_a_repeat_makes_no_second_token_and_tells_no_secret(tokens):
    request_id = str(uuid.uuid4())
    first = create(tokens, name="app", secret="my-chosen-secret", request_id=request_id)
    again = create(tokens, name="app", secret="my-chosen-secret", request_id=request_id.upper())
    assert (again.token, again.secret) == (first.token, "")
    assert reason(create, tokens, name="other", request_id=request_id) == "ALREADY_EXISTS"
    assert reason(create, tokens, name="app", secret="other-chosen-secret", request_id=request_id) == "ALREADY_EXISTS"
    assert reason(top_up, tokens, first.token.id, DOLLAR, request_id) == "ALREADY_EXISTS"
    assert len(tokens.ListTokens(tokens_pb2.ListTokensRequest()).tokens) == 1


def test_repeats_at_once_make_one_token(tokens):
    request_id = str(uuid.uuid4())
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create(tokens, request_id=request_id), range(16)))
    assert len({answer.token.id for answer in made}) == 1
    assert sum(bool(answer.secret) for answer in made) == 1


def test_a_repeated_top_up_and_a_repeated_rotation_change_nothing_more(tokens, db):
    made = create(tokens, max_amount_nanos=0).token
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    for _ in range(3):
        assert top_up(tokens, made.id, DOLLAR, first).max_amount_nanos == DOLLAR
    assert reason(top_up, tokens, made.id, 2 * DOLLAR, first) == "ALREADY_EXISTS"
    turned = rotate(tokens, made.id, second)
    kept = hash_in(db, made.id)
    assert rotate(tokens, made.id, second).secret == ""
    assert hash_in(db, made.id) == kept
    assert turned.secret


def test_what_is_kept_of_a_repeat_does_not_give_a_weak_secret_away(tokens, db):
    """Nobody without the token key can try words against it."""
    request_id = str(uuid.uuid4())
    create(tokens, secret="password", request_id=request_id)
    row = next(iter(models.Operation.select().execute(db)))
    assert "password" not in str(row.__data__)
    assert len(row.digest) == 64
