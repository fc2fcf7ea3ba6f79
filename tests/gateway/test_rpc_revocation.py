"""A revoked certificate is refused at every RPC, on connections that stand as well; one that was issued later is good."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from gateway.errors import InvalidArgument, Unauthenticated
from gateway.rpc.identity import issued_at
from gateway.storage.audit import Actor, AuditLog
from gateway.storage.revoked_identities import RevokedIdentities, RevokedIdentityStore
from tests.gateway.client_harness import RIGHTS, real_auth
from tests.support.ledger import MODEL, SECRET, MovedClock, make_database, request_row

OPERATOR = Actor("operator")


@pytest.fixture
def auth(tmp_path):
    with real_auth(tmp_path) as running:
        running.add_token(SECRET)
        yield running


@pytest.fixture
def store(database_url):
    db = make_database(database_url)
    yield RevokedIdentityStore(db, clock=MovedClock()), RevokedIdentities(db), db
    db.close()


def issued(folder):
    return issued_at(x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes()))


def test_the_moment_of_issue_is_read_from_the_certificate(auth):
    assert abs(issued(auth.folder / "billing") - datetime.now(UTC)) < timedelta(seconds=60)


def test_a_revoked_certificate_is_refused_on_a_connection_that_stands(auth):
    other = auth.issue("reports", RIGHTS)
    with auth.gateway() as billing, auth.gateway("reports") as reports:
        billing.check(SECRET)
        auth.revoked["billing"] = issued(auth.folder / "billing")
        with pytest.raises(Unauthenticated, match="billing is revoked: issue a new one with `gateway identity create billing"):
            billing.check(SECRET)
        reports.check(SECRET)
        auth.revoked["reports"] = issued(other) - timedelta(seconds=1)
        reports.check(SECRET)


async def test_a_certificate_that_takes_its_place_is_good_at_once(auth):
    async with auth.async_gateway(timeout=3.0) as gateway:
        await gateway.check(SECRET)
        await asyncio.sleep(1.0)  # certificates tell when they were issued to the second
        auth.issue("billing", RIGHTS)
        auth.revoked["billing"] = issued(auth.folder / "billing") - timedelta(seconds=1)
        await asyncio.sleep(1.1)  # the client looks at its folder once a second
        await gateway.check(SECRET)


def test_what_is_revoked_stays_so(store):
    revoked, known, db = store
    now = MovedClock().now().replace(microsecond=0)
    known.read()
    assert known.until("billing") is None
    assert revoked.revoke("billing", None, actor=OPERATOR).issued_until == now
    assert revoked.revoke("billing", now - timedelta(days=1), actor=OPERATOR).issued_until == now
    later = now + timedelta(seconds=90, microseconds=7)
    assert revoked.revoke("billing", later, actor=OPERATOR).issued_until == now + timedelta(seconds=90)
    assert revoked.revoke("a-service", now, actor=OPERATOR).actor == "operator"
    assert known.until("billing") is None  # until it is read again
    known.look()
    assert (known.until("billing"), known.until("other")) == (now + timedelta(seconds=90), None)
    assert [(one.name, one.issued_until) for one in revoked.all()] == [
        ("a-service", now),
        ("billing", now + timedelta(seconds=90)),
    ]
    noted = [(entry.action, entry.subject, entry.actor) for entry in AuditLog(db).page(limit=9)]
    assert noted == [("identity.revoke", f"identity:{name}", "operator") for name in ("a-service", "billing", "billing")]


def test_nothing_is_revoked_that_is_yet_to_be_issued(store):
    revoked, known, _ = store
    with pytest.raises(InvalidArgument, match="set the clocks right"):
        revoked.revoke("billing", MovedClock().now() + timedelta(hours=2), actor=OPERATOR)
    known.read()
    assert known.until("billing") is None


def test_the_list_stays_while_the_database_is_away(store):
    revoked, known, db = store
    revoked.revoke("billing", None, actor=OPERATOR)
    known.read()
    with db.write():
        db.run("ALTER TABLE revoked_identities RENAME TO away")
    known.look()
    assert known.until("billing") is not None


def test_reports_of_a_revoked_identity_are_kept_until_it_is_issued_anew(auth):
    with auth.gateway(timeout=3.0) as gateway:
        calls = [gateway.validate(SECRET, model=MODEL, input_tokens=1, max_output_tokens=1) for _ in range(2)]
        auth.revoked["billing"] = issued(auth.folder / "billing")
        assert not gateway.record_usage(calls[0], input_tokens=1, output_tokens=1).delivered
        gateway.flush(0.5)  # tried again in vain
        time.sleep(1.1)  # certificates tell when they were issued to the second, and the client looks once a second
        auth.issue("billing", RIGHTS)
        assert gateway.flush(5.0) == []
        assert gateway.record_usage(calls[1], input_tokens=1, output_tokens=1).delivered
    assert {row["state"] for row in (request_row(auth.db, call.request_id) for call in calls)} == {"settled"}
