"""What only several processes over one PostgreSQL can do to each other, and what the server can do to all of them."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest

from gateway import errors
from gateway.admission import Admitted, Settled
from gateway.storage.database import connect
from gateway.storage.faults import CommitUnheard
from gateway.storage.migrate import migrate
from gateway.storage.reconcile import reconcile
from gateway.usage import State
from tests.support.ledger import (
    DOLLAR,
    PROXY,
    add_token,
    admission,
    make_database,
    open_ledger,
    released,
    request_row,
    settled,
    token_row,
)
from tests.support.postgres import PostgresServer, shared_server


@pytest.fixture
def db(postgres_url):
    db = make_database(postgres_url)
    add_token(db)
    yield db
    assert reconcile(db) == []
    db.close()


@pytest.fixture
def two(db, postgres_url):
    """Two ledgers as two auth processes have them, each with connections of its own; on a busy machine they wait longer."""
    databases = [connect(postgres_url, busy_timeout=1.0) for _ in range(2)]
    ledgers = [open_ledger(database) for database in databases]
    yield ledgers
    for ledger, database in zip(ledgers, databases, strict=True):
        ledger.close()
        database.close()


def admit(ledger, **changes):
    asked = admission(**changes)
    (answer,) = ledger.commit([], [asked]).admissions
    return asked.request_id, answer


def at_once(jobs):
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


def test_two_processes_let_through_what_the_budget_holds_and_no_call_more(two, db):
    """Each call holds and costs a cent: of 300 over both, 100 pass."""
    answers = at_once([lambda ledger=two[n % 2]: admit(ledger, limit=9, read=1) for n in range(300)])
    passed = [request_id for request_id, answer in answers if isinstance(answer, Admitted)]
    assert len(passed) == 100
    assert token_row(db)["held_nanos"] == DOLLAR
    at_once([lambda n=n, i=i: two[n % 2].commit([settled(i, read=1, written=9)], []) for n, i in enumerate(passed)])
    assert token_row(db) | {"enabled": 1} == {
        "held_nanos": 0,
        "total_spent_nanos": DOLLAR,
        "period_spent_nanos": DOLLAR,
        "open_calls": 0,
        "request_count": 100,
        "total_tokens": 1000,
        "enabled": 1,
    }


def test_batches_of_many_tokens_in_any_order_wait_for_each_other_in_no_circle(two, db):
    for number in range(12):
        add_token(db, f"a-token-number-{number:02}", max_amount="100")
    admit(two[0], secret="a-token-number-00")  # adopts them all

    def work(place):
        refused = []
        for turn in range(15):
            order = range(12) if (place + turn) % 2 else reversed(range(12))
            asked = [admission(secret=f"a-token-number-{number:02}", limit=1, read=1) for number in order]
            answers = two[place].commit([], asked, timeout=5.0).admissions
            refused += [answer for answer in answers if not isinstance(answer, Admitted)]
            reports = [settled(item.request_id, read=1, written=1) for item in asked]
            refused += [a for a in two[1 - place].commit(reports, [], timeout=5.0).settlements if not isinstance(a, Settled)]
        return refused

    assert at_once([lambda: work(0), lambda: work(1), lambda: work(0), lambda: work(1)]) == [[], [], [], []]


def test_tokens_are_locked_by_their_ids_wherever_their_rows_lie(two, db, postgres_url):
    for number in range(2, 9):
        add_token(db, f"a-token-number-{number:02}")
    admit(two[0], secret="a-token-number-02")
    asked = [admission(secret=f"a-token-number-{number:02}", limit=1, read=1) for number in range(2, 9)]
    with psycopg.connect(postgres_url) as holder, psycopg.connect(postgres_url, autocommit=True) as looker:
        looker.execute("UPDATE client_tokens SET remark = 'moved' WHERE id IN (2, 3)")  # to the end of the table
        holder.execute("SELECT 1 FROM client_tokens WHERE id = 5 FOR UPDATE")
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(two[0].commit, [], asked)
            ends = time.monotonic() + 5
            free = "SELECT id FROM client_tokens WHERE id > 1 ORDER BY id FOR UPDATE SKIP LOCKED"
            while (found := [row[0] for row in looker.execute(free)]) != [6, 7, 8]:
                assert time.monotonic() < ends, found
            holder.rollback()
            assert all(isinstance(answer, Admitted) for answer in answers.result().admissions)


def test_a_token_that_somebody_holds_fails_its_own_calls_and_not_its_neighbours(two, db, postgres_url):
    add_token(db, "a-neighbour-of-it")
    admit(two[0], secret="a-neighbour-of-it")
    with psycopg.connect(postgres_url) as holder:
        holder.execute("SELECT 1 FROM client_tokens WHERE id = 1 FOR UPDATE")
        asked = [admission(), admission(secret="a-neighbour-of-it"), admission(), admission(secret="a-neighbour-of-it")]
        answers = two[0].commit([], asked).admissions
        assert [type(answer).__name__ for answer in answers] == ["RowLocked", "Admitted", "RowLocked", "Admitted"]
        assert isinstance(answers[0], errors.DatabaseUnavailable)
        assert answers[0].retry_after
    assert isinstance(admit(two[0])[1], Admitted)


def test_a_call_withdrawn_while_another_process_admits_it_is_never_left_open(two, db):
    """Whoever comes first: the late admission is refused, or the withdrawal finds the call and releases it."""
    for _ in range(60):
        asked = admission(limit=1, read=1)
        report = released(asked.request_id)
        at_once([partial(two[0].commit, [], [asked]), partial(two[1].commit, [report], [])])
        assert token_row(db)["held_nanos"] == 0


def test_the_same_admission_at_both_processes_is_one_call(two, db):
    asked = admission(limit=1, read=1)
    answers = at_once([lambda ledger=two[n % 2]: ledger.commit([], [asked]).admissions[0] for n in range(8)])
    assert all(isinstance(answer, Admitted) for answer in answers), answers
    assert token_row(db)["open_calls"] == 1


def test_the_same_report_at_both_processes_is_one_charge(two, db):
    request_id, _ = admit(two[0])
    answers = at_once([lambda n=n: two[n % 2].commit([settled(request_id)], []).settlements[0] for n in range(8)])
    assert {answer.cost_nanos for answer in answers} == {30 * DOLLAR // 1000}
    assert token_row(db)["total_spent_nanos"] == 30 * DOLLAR // 1000


def test_two_sweepers_expire_a_call_once(two, db):
    request_id, _ = admit(two[0])
    at_once([lambda ledger=ledger: ledger.expire(proxy_id=PROXY) for ledger in two])
    assert request_row(db, request_id)["state"] == State.EXPIRED
    assert token_row(db)["total_spent_nanos"] == 100 * DOLLAR // 1000


def test_two_sweepers_write_refusals_of_the_same_tokens_without_waiting_in_a_circle(two, db):
    counts = {(number, "BUDGET_EXHAUSTED", "2027-01-01T00:00"): (1, "10.0.0.1", "") for number in range(400)}
    backwards = dict(reversed(counts.items()))
    for _ in range(5):
        at_once([partial(two[0].add_denials, counts), partial(two[1].add_denials, backwards)])
    assert db.query("SELECT MIN(count), MAX(count) FROM denials") == [(10, 10)]


def test_a_row_by_hand_is_adopted_once_by_whoever_is_asked(two, db):
    for number in range(5):
        secret = f"written-by-hand-{number}"
        add_token(db, secret)
        answers = at_once([lambda ledger=two[n % 2], s=secret: admit(ledger, secret=s, limit=1, read=1)[1] for n in range(6)])
        assert all(isinstance(answer, Admitted) for answer in answers), answers
    assert db.query("SELECT COUNT(*) FROM audit WHERE action = 'token.adopt'") == [(6,)]


def test_cut_connections_cost_a_refusal_at_the_most_and_heal_by_themselves(two, db, postgres_url):
    for _ in range(20):
        shared_server().terminate_backends(postgres_url)
        ends = time.monotonic() + 5
        while True:
            try:
                (answer,) = two[0].commit([], [admission(limit=1, read=1)]).admissions
            except errors.DatabaseUnavailable:
                assert time.monotonic() < ends
                continue
            assert isinstance(answer, Admitted), answer
            break
    assert db.query("SELECT 1") == [(1,)]


def test_a_connection_cut_in_the_middle_of_a_transaction_changes_nothing(db, postgres_url):
    with pytest.raises(errors.DatabaseUnavailable), db.write():
        db.run("UPDATE client_tokens SET held_nanos = 5")
        shared_server().terminate_backends(postgres_url)
        db.run("UPDATE client_tokens SET held_nanos = 6")
    assert token_row(db)["held_nanos"] == 0


def test_a_commit_that_is_not_heard_of_is_told_from_one_that_was_not_begun(db, postgres_url):
    with pytest.raises(CommitUnheard), db.write():
        db.run("UPDATE client_tokens SET held_nanos = 5")
        shared_server().terminate_backends(postgres_url)
    with pytest.raises(errors.DatabaseUnavailable) as told, db.write():
        shared_server().terminate_backends(postgres_url)
        db.run("UPDATE client_tokens SET held_nanos = 6")
    assert not isinstance(told.value, CommitUnheard)
    assert token_row(db)["held_nanos"] == 0


def test_a_server_that_crashes_under_load_loses_nothing_that_was_answered():
    server = PostgresServer(synced=True)
    try:
        url = server.create()
        db = make_database(url)
        add_token(db, max_amount="1000")
        other = connect(url)
        ledger = open_ledger(other)
        answered, stop = [], threading.Event()

        def work():
            while not stop.is_set():
                try:
                    request_id, answer = admit(ledger, limit=1, read=1)
                    assert isinstance(answer, Admitted), answer
                    answered.append(request_id)
                except errors.DatabaseUnavailable:
                    stop.wait(0.02)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            seen = len(answered)
            while len(answered) < seen + 30:
                time.sleep(0.01)
            server.stop(signal.SIGQUIT)
            server.start()
        seen, back = len(answered), time.monotonic()
        while len(answered) == seen:
            time.sleep(0.01)
        assert time.monotonic() - back < 5
        stop.set()
        for thread in threads:
            thread.join()
        known = {row[0] for row in db.query("SELECT request_id FROM requests")}
        assert set(answered) <= known
        assert reconcile(db) == []
        ledger.close()
        other.close()
        db.close()
    finally:
        server.close()


def test_a_process_that_stops_in_mid_transaction_does_not_hold_others_up_for_long(two, db, postgres_url):
    stopped = connect(postgres_url)
    with pytest.raises(errors.DatabaseUnavailable), stopped.write():
        stopped.query("SELECT id FROM client_tokens ORDER BY id FOR NO KEY UPDATE")
        ends = time.monotonic() + 5
        assert not _answers(two[0])
        while not _answers(two[0]):
            assert time.monotonic() < ends
        stopped.run("UPDATE client_tokens SET held_nanos = 0")
    stopped.close()


def _answers(ledger):
    try:
        return isinstance(admit(ledger, limit=1, read=1)[1], Admitted)
    except errors.DatabaseUnavailable:
        return False


def test_two_starters_migrate_once(postgres_url):
    def start():
        db = connect(postgres_url, busy_timeout=10.0)
        try:
            return migrate(db)
        finally:
            db.close()

    applied = at_once([start] * 4)
    assert sorted(map(bool, applied)) == [False, False, False, True]


def test_a_commit_waits_for_the_disk_whatever_the_server_says_by_default(postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name = connection.execute("SELECT current_database()").fetchone()[0]
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    db = connect(postgres_url)
    assert db.query("SHOW synchronous_commit") == [("on",)]
    db.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://gateway@127.0.0.1:1/x", "127.0.0.1:1/x is away"),
        ("postgresql://gateway:secret-word@127.0.0.1:{port}/no-such-database", "does not exist"),
        ("postgresql://gateway@127.0.0.1:{port}/x?no_such_option=1", "behind the `\\?` is unknown"),
        ("postgresql://gateway:%secret-word@127.0.0.1:{port}/x", "`%` is written %25"),
        ("postgresql://gateway:12/secret-word@127.0.0.1:{port}/x", "`/` %2F"),
        ("postgresql://gateway:secret-word/1@127.0.0.1:{port}/x", "`/` %2F"),
        ("postgresql://gateway:[secret-word@127.0.0.1:{port}/x", "is away|%5B"),
        ("postgresql://gateway:secret-word@[::1]x/x", "is not a URL"),
    ],
)
def test_a_database_that_cannot_be_had_is_told_without_its_password(url, said):
    with pytest.raises((errors.DatabaseUnavailable, errors.InvalidArgument), match=said) as caught:
        connect(url.format(port=shared_server().port))
    assert "secret-word" not in str(caught.value)


def test_what_no_column_can_hold_is_an_argument_that_is_wrong(db):
    with pytest.raises(errors.InvalidArgument):
        db.query("SELECT 1 FROM client_tokens WHERE name = ?", ("zero\0byte",))
    with pytest.raises(errors.InvalidArgument), db.write():
        db.run("UPDATE client_tokens SET version = ?", (1 << 40,))
    with pytest.raises(errors.InvalidArgument):
        db.query("SELECT 1 FROM client_tokens WHERE id = ?", (1 << 70,))
