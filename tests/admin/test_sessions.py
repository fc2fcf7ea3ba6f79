"""Logins, sessions and passwords over gRPC, against a real server and database."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
import pytest
from prometheus_client import CollectorRegistry

from gateway.errors import InvalidArgument
from gateway.process import logs
from gateway.rpc.access import none_revoked
from gateway.rpc.channel import sync_channel
from gateway.rpc.server import bind
from gateway.rpc.status import from_status
from gateway.storage import models, passwords
from gateway.storage.administrators import bootstrap
from gateway.storage.database import connect
from gateway.storage.sessions import SessionStore
from gateway.stubs.admin.v1 import audit_pb2, sessions_pb2, tokens_pb2
from services.admin.app import make_server
from services.admin.metrics import AdminMetrics
from tests.admin.conftest import PASSWORD, TOKEN_KEY, Caller, bearer

NEW_PASSWORD = "another-long-phrase"
LIST = tokens_pb2.ListTokensRequest()


@pytest.fixture
def proxy(call):
    return call("proxy")


def error_of(call, *args, **more):
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **more)
    return from_status(caught.value)


def session_of(caller, secret):
    return caller.sessions.GetSession(sessions_pb2.GetSessionRequest(), metadata=bearer(secret)).session


def change(caller, secret, old, new):
    request = sessions_pb2.ChangePasswordRequest(old_password=old, new_password=new)
    caller.sessions.ChangePassword(request, metadata=bearer(secret))


def is_dead(caller, secret):
    return error_of(session_of, caller, secret).reason == "UNAUTHENTICATED"


def audited(call, action):
    return call("operator").audit.ListAuditRecords(audit_pb2.ListAuditRecordsRequest(action=action)).records


# -- sessions -----------------------------------------------------------------------------------------------------------------


def test_a_login_opens_a_session_that_tells_who_opened_it(proxy, clock):
    answer = proxy.sessions.Login(
        sessions_pb2.LoginRequest(username="admin", password=PASSWORD, kind=sessions_pb2.SESSION_KIND_WEB),
        metadata=(("x-client-ip", "203.0.113.9"), ("x-user-agent", "firefox")),
    )
    session = session_of(proxy, answer.session_token)
    assert session == answer.session
    assert (session.username, session.role, session.kind) == ("admin", "admin", sessions_pb2.SESSION_KIND_WEB)
    assert (session.client_ip, session.user_agent) == ("203.0.113.9", "firefox")
    assert session.expires_at.seconds - session.created_at.seconds == 12 * 3600


def test_each_login_has_a_secret_of_its_own_and_the_database_only_its_hash(proxy, db, tmp_path):
    first, second = proxy.login(), proxy.login()
    assert first != second
    db.tend(last=True)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("gateway.db*"))
    assert first.encode() not in stored
    assert PASSWORD.encode() not in stored
    row = next(iter(models.Session.select().execute(db)))
    assert error_of(session_of, proxy, row.token_hash).reason == "UNAUTHENTICATED"


def test_a_session_ends_30_minutes_after_its_last_use(proxy, clock):
    secret = proxy.login()
    for _ in range(3):
        clock.move(minutes=29)
        session_of(proxy, secret)
    clock.move(minutes=30)
    assert is_dead(proxy, secret)


def test_a_session_ends_12_hours_after_the_login_however_much_it_is_used(proxy, clock):
    secret = proxy.login()
    for _ in range(12 * 3 - 1):
        clock.move(minutes=20)
        session_of(proxy, secret)
    clock.move(minutes=20)
    assert is_dead(proxy, secret)


def test_logout_ends_the_session_at_once_and_no_other(proxy):
    first, second = proxy.login(), proxy.login()
    proxy.sessions.Logout(sessions_pb2.LogoutRequest(), metadata=bearer(first))
    assert is_dead(proxy, first)
    session_of(proxy, second)


def test_sessions_are_listed_newest_first_in_pages_and_revoked_one_by_one(proxy, clock):
    secrets = []
    for _ in range(3):
        secrets.append(proxy.login())
        clock.move(seconds=1)
    ids = [session_of(proxy, secret).id for secret in secrets]
    listed, token = [], ""
    while True:
        request = sessions_pb2.ListSessionsRequest(page_size=2, page_token=token)
        page = proxy.sessions.ListSessions(request, metadata=bearer(secrets[0]))
        listed += [session.id for session in page.sessions]
        if not (token := page.next_page_token):
            break
    assert listed == ids[::-1]
    proxy.sessions.RevokeSession(sessions_pb2.RevokeSessionRequest(id=ids[2]), metadata=bearer(secrets[0]))
    assert is_dead(proxy, secrets[2])
    fault = error_of(proxy.sessions.RevokeSession, sessions_pb2.RevokeSessionRequest(id="x"), metadata=bearer(secrets[0]))
    assert fault.reason == "NOT_FOUND"


def test_nobody_sees_or_ends_the_sessions_of_another_administrator(call, proxy):
    call("operator").sessions.SetPassword(sessions_pb2.SetPasswordRequest(username="eve", new_password=NEW_PASSWORD))
    admin, eve = proxy.login(), proxy.login(NEW_PASSWORD, "eve")
    listed = proxy.sessions.ListSessions(sessions_pb2.ListSessionsRequest(), metadata=bearer(eve)).sessions
    assert [session.username for session in listed] == ["eve"]
    request = sessions_pb2.RevokeSessionRequest(id=session_of(proxy, admin).id)
    assert error_of(proxy.sessions.RevokeSession, request, metadata=bearer(eve)).reason == "NOT_FOUND"
    session_of(proxy, admin)


def test_only_a_door_of_ours_is_believed_about_the_callers_address(call, proxy):
    proxy.login(ip="not an address")
    secret = proxy.login(ip="2001:db8::7")
    assert session_of(proxy, secret).client_ip == "2001:db8::7"
    request = sessions_pb2.RevokeSessionRequest(id=session_of(proxy, secret).id)
    call("billing").sessions.RevokeSession(request, metadata=bearer(secret))
    assert audited(call, "session.revoke")[0].client_ip == "127.0.0.1"


# -- passwords ----------------------------------------------------------------------------------------------------------------


def test_wrong_password_and_unknown_name_get_the_same_answer_and_are_audited(call, proxy):
    wrong, unknown = error_of(proxy.login, "not-the-phrase"), error_of(proxy.login, PASSWORD, "nobody")
    assert wrong == unknown
    assert wrong.reason == "UNAUTHENTICATED"
    assert [record.actor for record in audited(call, "session.login_failed")] == ["login:unknown", "login:admin"]
    assert audited(call, "session.login_failed")[0].client_ip == "203.0.113.9"


def test_an_unknown_name_costs_a_hashing_like_a_known_one():
    check = passwords.PasswordCheck()
    stored = passwords.hash_password(PASSWORD)

    def cost(hashed):
        spans = []
        for _ in range(9):
            start = time.thread_time()
            assert not check.matches("not-the-phrase", hashed)
            spans.append(time.thread_time() - start)
        return sorted(spans)[4]

    assert cost(None) == pytest.approx(cost(stored), rel=0.5)


def test_passwords_are_kept_as_argon2id_of_the_stated_cost(admin, db):
    stored = next(iter(models.Administrator.select().execute(db))).password_hash
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_the_stored_hash_is_no_password_and_no_session(admin, db, proxy):
    stored = next(iter(models.Administrator.select().execute(db))).password_hash
    assert error_of(proxy.login, stored).reason == "UNAUTHENTICATED"
    assert is_dead(proxy, stored)


def test_one_hashing_at_a_time_and_no_more(monkeypatch):
    running, most, lock = 0, 0, threading.Lock()
    check = passwords.PasswordCheck()

    class Counting:
        def verify(self, stored, password):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.005)
            with lock:
                running -= 1
            return True

    monkeypatch.setattr(passwords, "_hasher", Counting())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: check.matches("x", "y"), range(16)))
    assert most == 1


@pytest.mark.parametrize("password", ["x" * 1025, "é" * 600, "x" * 1_000_000])
def test_an_over_long_password_is_refused_without_a_hashing(proxy, db, password):
    assert error_of(proxy.login, password).reason == "INVALID_ARGUMENT"
    assert not models.LoginAttempt.select().exists(db)


def test_guesses_are_slowed_down_and_the_right_password_works_again(call, proxy, clock, db):
    reasons, waits = [], []
    for _ in range(300):
        fault = error_of(proxy.login, "not-the-phrase")
        reasons.append(fault.reason)
        if fault.reason == "THROTTLED":
            waits.append(fault.retry_after)
        clock.move(milliseconds=100)
    assert reasons[:5] == ["UNAUTHENTICATED"] * 5
    assert reasons.count("UNAUTHENTICATED") <= 10
    assert set(reasons) == {"UNAUTHENTICATED", "THROTTLED"}
    assert max(waits) == 16
    assert error_of(proxy.login).reason == "THROTTLED"
    clock.move(minutes=5)
    proxy.login()
    assert len(audited(call, "session.login_throttled")) <= 10


def test_another_account_does_not_feel_the_guesses_at_one(call, proxy):
    call("operator").sessions.SetPassword(sessions_pb2.SetPasswordRequest(username="eve", new_password=NEW_PASSWORD))
    for _ in range(12):
        error_of(proxy.login, "not-the-phrase")
    proxy.login(NEW_PASSWORD, "eve")


def test_tries_are_counted_over_processes_and_over_all_doors(admin, call, db, identities, clock, database_url):
    """A second admin over the same database, asked by the operator's door; and a change of password counts as well."""
    second = connect(database_url, busy_timeout=2.0)
    server = make_server(
        db=second,
        identity=identities["admin"],
        revoked=none_revoked,
        token_key=TOKEN_KEY,
        clock=clock,
        registry=CollectorRegistry(),
        metrics=AdminMetrics(CollectorRegistry()),
    )
    port = bind(server, "127.0.0.1:0", identities["admin"])
    server.start()
    with sync_channel(f"127.0.0.1:{port}", identities["operator"], "admin") as channel:
        there, here = Caller(channel), call("proxy")
        secret = here.login()
        for _ in range(2):
            error_of(there.login, "not-the-phrase")
            error_of(here.login, "not-the-phrase")
        assert error_of(change, here, secret, "not-the-phrase", NEW_PASSWORD).reason == "UNAUTHENTICATED"
        assert error_of(there.login).reason == "THROTTLED"
        assert error_of(here.login).reason == "THROTTLED"
        assert error_of(change, here, secret, PASSWORD, NEW_PASSWORD).reason == "THROTTLED"
    server.stop(0).wait(5)
    second.close()


def test_many_right_logins_at_once_are_ten_verifications_a_minute(proxy):
    def login(_):
        try:
            proxy.login()
        except grpc.RpcError as error:
            return from_status(error).reason
        return "OK"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(login, range(24)))
    assert outcomes.count("OK") <= 10
    assert set(outcomes) <= {"OK", "THROTTLED"}


def test_a_change_of_password_ends_the_other_sessions_and_the_old_password(proxy):
    mine, other = proxy.login(), proxy.login()
    change(proxy, mine, PASSWORD, NEW_PASSWORD)
    session_of(proxy, mine)
    assert is_dead(proxy, other)
    assert error_of(proxy.login).reason == "UNAUTHENTICATED"
    proxy.login(NEW_PASSWORD)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("not-the-phrase", NEW_PASSWORD, "UNAUTHENTICATED"),
        (PASSWORD, "short", "INVALID_ARGUMENT"),
        (PASSWORD, "password123", "INVALID_ARGUMENT"),
        (PASSWORD, "x" * 2000, "INVALID_ARGUMENT"),
        (PASSWORD, PASSWORD, "INVALID_ARGUMENT"),
    ],
)
def test_a_refused_change_of_password_changes_nothing(proxy, old, new, reason):
    mine, other = proxy.login(), proxy.login()
    assert error_of(change, proxy, mine, old, new).reason == reason
    session_of(proxy, other)
    proxy.login()


def test_the_operator_sets_a_password_which_ends_all_sessions_and_all_waits(call, proxy):
    secret = proxy.login()
    for _ in range(12):
        error_of(proxy.login, "not-the-phrase")
    call("operator").sessions.SetPassword(sessions_pb2.SetPasswordRequest(username="admin", new_password=NEW_PASSWORD))
    assert is_dead(proxy, secret)
    proxy.login(NEW_PASSWORD)
    assert audited(call, "administrator.set_password")[0].actor == "operator"


# -- the first administrator --------------------------------------------------------------------------------------------------


def without_administrators(db):
    models.Session.delete().execute(db)
    models.Administrator.delete().execute(db)


def test_a_one_time_password_opens_a_change_of_password_and_is_then_gone(admin, proxy, db, clock):
    without_administrators(db)
    one_time = bootstrap(db, None, clock=clock)
    secret = proxy.login(one_time)
    assert session_of(proxy, secret).role == "password_change"
    fault = error_of(proxy.tokens.ListTokens, LIST, metadata=bearer(secret))
    assert (fault.reason, fault.metadata["role"]) == ("PERMISSION_DENIED", "password_change")
    change(proxy, secret, one_time, NEW_PASSWORD)
    proxy.tokens.ListTokens(LIST, metadata=bearer(secret))
    assert error_of(proxy.login, one_time).reason == "UNAUTHENTICATED"
    assert session_of(proxy, proxy.login(NEW_PASSWORD)).role == "admin"


def test_a_one_time_password_ends_after_24_hours(admin, proxy, db, clock):
    without_administrators(db)
    one_time = bootstrap(db, None, clock=clock)
    clock.move(hours=24)
    assert error_of(proxy.login, one_time).reason == "UNAUTHENTICATED"


def test_the_first_administrator_is_made_once(db, clock):
    assert bootstrap(db, None, clock=clock) is not None
    assert bootstrap(db, None, clock=clock) is None
    assert bootstrap(db, PASSWORD, clock=clock) is None
    assert models.Administrator.select().count(db) == 1


@pytest.mark.parametrize("password", ["", "admin", "password", "changeme", "admin1234", "short"])
def test_a_sample_password_makes_no_administrator(db, password):
    with pytest.raises(InvalidArgument):
        bootstrap(db, password)
    assert not models.Administrator.select().exists(db)


# -- clocks that are wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passed", [timedelta(minutes=31), timedelta(hours=12, minutes=1)])
def test_a_session_that_has_ended_stays_so_when_the_clock_is_set_back(proxy, db, clock, passed):
    secret = proxy.login()
    clock.moment += passed
    assert is_dead(proxy, secret)
    assert SessionStore(db, clock=clock).end_over() == 1  # as admin does each second
    clock.moment -= passed
    assert is_dead(proxy, secret)
    session_of(proxy, proxy.login())


def test_a_session_from_the_future_is_refused_and_does_not_live_when_its_time_comes(proxy, db, clock):
    clock.moment += timedelta(days=2)
    secret = proxy.login()
    clock.moment -= timedelta(days=2)
    assert is_dead(proxy, secret)
    assert SessionStore(db, clock=clock).end_over() == 1
    clock.moment += timedelta(days=2, minutes=1)
    assert is_dead(proxy, secret)


def test_another_machine_may_be_half_a_minute_ahead(proxy, db, clock):
    clock.moment += timedelta(seconds=30)
    secret = proxy.login()
    clock.moment -= timedelta(seconds=30)
    session_of(proxy, secret)
    assert SessionStore(db, clock=clock).end_over() == 0


# -- many names from one address ----------------------------------------------------------------------------------------------


def attempt(proxy, username, address, password="a wrong guess"):
    """What becomes of a login: `ok`, or the reason of its refusal."""
    try:
        proxy.sessions.Login(
            sessions_pb2.LoginRequest(username=username, password=password), metadata=(("x-client-ip", address),)
        )
    except grpc.RpcError as error:
        return from_status(error).reason
    return "ok"


def test_an_address_may_try_thirty_names_a_minute_and_what_is_beyond_costs_neither_a_hash_nor_a_row(proxy, db, clock):
    rows = "SELECT (SELECT COUNT(*) FROM login_attempts), (SELECT COUNT(*) FROM audit)"
    told = [attempt(proxy, f"nobody-{number}", "203.0.113.9") for number in range(30)]
    assert set(told) == {"UNAUTHENTICATED"}
    before = db.query(rows)
    assert {attempt(proxy, f"nobody-{number}", "203.0.113.9") for number in range(30, 60)} == {"THROTTLED"}
    assert db.query(rows) == before
    assert attempt(proxy, "nobody-0", "203.0.113.9") == "UNAUTHENTICATED"  # a name that it has tried has its own limit
    assert attempt(proxy, "admin", "203.0.113.10", PASSWORD) == "ok"
    assert attempt(proxy, "admin", "203.0.113.9", PASSWORD) == "THROTTLED"
    clock.move(seconds=61)
    assert attempt(proxy, "admin", "203.0.113.9", PASSWORD) == "ok"


def test_addresses_of_one_ipv6_network_count_as_one(proxy):
    for number in range(30):
        assert attempt(proxy, f"nobody-{number}", f"2001:db8:1:2::{number + 1:x}") == "UNAUTHENTICATED"
    assert attempt(proxy, "nobody-30", "2001:db8:1:2:ffff::1") == "THROTTLED"
    assert attempt(proxy, "nobody-30", "2001:db8:1:3::1") == "UNAUTHENTICATED"


@pytest.mark.parametrize("secret", ["hunter2-as-a-password", "sk-gz-0123456789abcdefghij", "gzs_0123456789abcdefghij"])
@pytest.mark.usefixtures("logs_as_before")
def test_a_secret_that_is_typed_as_a_name_reaches_neither_audit_nor_log(proxy, call, db, clock, capfd, secret):
    logs.configure("debug", "json", "admin")
    for _ in range(12):
        attempt(proxy, secret, "203.0.113.9")
    assert not [row for row in db.query("SELECT actor, subject, before_json, after_json FROM audit") if secret in str(row)]
    assert secret not in capfd.readouterr().err
    assert [record.actor for record in audited(call, "session.login_throttled")] == ["login:unknown"]
