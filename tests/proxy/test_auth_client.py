"""The proxy's side of auth against a real gRPC server whose service behaves, and sometimes does not."""

from __future__ import annotations

import asyncio
import signal
import sys
import time

import pytest
from prometheus_client import CollectorRegistry

from gateway.errors import AlreadyExists, AuthUnavailable, BudgetReserved, GatewayError, Overloaded, TokenUnknown
from gateway.ids import uuid7
from gateway.rpc.channel import aio_channel
from gateway.rpc.status import code_of
from gateway.storage.faults import CommitUnheard
from gateway.stubs.auth.v1 import auth_pb2 as pb
from services.proxy import auth_client
from services.proxy.auth_client import AuthClient
from services.proxy.metrics import BatchMetrics
from services.proxy.outbox import Outbox
from services.proxy.replicas import Replicas
from tests.fakes.auth_service import TOKEN, FakeAuthService, Ledger, Token
from tests.proxy.auth_harness import KEY, call, client_of, eventually, now, settled
from tests.support.certificates import make_identities


@pytest.fixture
def pki(tmp_path):
    return tmp_path / "pki"


async def test_a_call_is_admitted_and_its_settlement_booked(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        request = call()
        grant = await gate.validate(request)
        assert (grant.token_id, grant.held_nanos) == (7, 10)
        gate.outbox.opened(request.request_id, KEY)
        gate.outbox.append(settled(request.request_id), KEY)
        await eventually(lambda: gate.ledger.state(request.request_id) == "settled")
        await eventually(lambda: gate.metric("gateway_proxy_outbox_pending") == 0)
        assert (gate.ledger.tokens[TOKEN].spent, gate.ledger.tokens[TOKEN].held) == (4, 0)


async def test_a_denial_is_the_refusal_of_its_reason_with_all_its_figures(tmp_path, pki):
    service = FakeAuthService(Ledger(tokens={TOKEN: Token(budget=15)}))
    async with client_of(tmp_path / "outbox", pki, service=service) as gate:
        await gate.validate(call())
        with pytest.raises(BudgetReserved) as refused:
            await gate.validate(call())
        assert refused.value.retry_after == 1.5
        assert refused.value.metadata == {
            "remaining_nanos": "15",
            "held_nanos": "10",
            "needed_nanos": "10",
            "limit": "max_amount",
            "token_id": "7",
            "resets_at": "2027-01-01T00:00:00.000000Z",
        }
        with pytest.raises(TokenUnknown):
            await gate.validate(call("sk-someone-elses"))
        assert len(gate.ledger.rows) == 1


async def test_without_a_request_id_it_only_looks(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        assert (await gate.validate(call(request_id=""))).token_id == 7
        assert not gate.ledger.rows


async def test_what_waits_at_one_moment_travels_together(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        await gate.validate(call())
        gate.service.batches.clear()
        await asyncio.gather(*(gate.validate(call()) for _ in range(300)))
        assert len(gate.service.batches) <= 7
        assert max(validations for _, validations in gate.service.batches) <= 64


async def test_500_callers_at_once_meet_no_limit(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        gate.service.item_seconds = 0.0002
        for _ in range(3):
            requests = [call() for _ in range(500)]
            started = time.monotonic()
            grants = await asyncio.gather(*(gate.validate(request) for request in requests))
            assert len(grants) == 500
            assert time.monotonic() - started < 1.0
            for request in requests:
                gate.outbox.append(settled(request.request_id), KEY)
        await eventually(lambda: gate.ledger.tokens[TOKEN].held == 0)


async def test_a_caller_who_makes_one_call_after_another_never_meets_his_own_hold(tmp_path, pki):
    service = FakeAuthService(Ledger(tokens={TOKEN: Token(budget=410)}))
    async with client_of(tmp_path / "outbox", pki, service=service) as gate:
        for _ in range(100):  # 4 spent by each, 10 held by one: the budget has room for exactly one hold beside what is spent
            request = call(held=10)
            await gate.validate(request)
            gate.outbox.append(settled(request.request_id), KEY)
        assert gate.ledger.conflicts == 0


async def test_more_settlements_than_a_batch_takes_all_travel_before_the_next_admission(tmp_path, pki):
    keyed = {f"sk-{number}": Token(budget=1000) for number in range(10)}
    service = FakeAuthService(Ledger(tokens=keyed))
    async with client_of(tmp_path / "outbox", pki, service=service) as gate:
        opened = [(name, call(name, held=20)) for name in keyed for _ in range(50)]
        await asyncio.gather(*(gate.validate(request) for _, request in opened))
        for name, request in opened:
            gate.outbox.append(settled(request.request_id), auth_client.token_key(name))
        grants = await asyncio.gather(*(gate.validate(call(name, held=800)) for name in keyed))
        assert len(grants) == 10
        assert max(settlements for settlements, _ in gate.service.batches) <= 256


async def test_a_batch_stays_below_a_mebibyte(tmp_path, pki):
    service = FakeAuthService(Ledger(tokens={f"sk-{number}": Token() for number in range(200)}))
    async with client_of(tmp_path / "outbox", pki, service=service) as gate:
        for name in service.ledger.tokens:
            request = call(name)
            await gate.validate(request)
            report = settled(request.request_id, usage_json="x" * 4000, attempts_json="y" * 4000)
            gate.outbox.append(report, auth_client.token_key(name))
        big = [call(name) for name in service.ledger.tokens]
        for request in big:
            request.user_agent = "u" * 15_000
        await asyncio.gather(*(gate.validate(request) for request in big))
        assert max(gate.service.sizes) <= 1 << 20


async def test_auth_away_is_told_after_a_second_and_nothing_is_let_through(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki, up=False) as gate:
        started = time.monotonic()
        answers = await asyncio.gather(*(gate.validate(call()) for _ in range(200)), return_exceptions=True)
        assert time.monotonic() - started < 1.8
        assert all(isinstance(answer, AuthUnavailable) and answer.retry_after == 1.0 for answer in answers)
        assert gate.metric("gateway_proxy_outbox_pending") == 0  # nothing was sent, so there is nothing to withdraw
        assert not gate.client.ready
        gate.server.start()
        back = time.monotonic()
        await eventually(lambda: gate.client.ready)
        assert (await gate.validate(call())).token_id == 7
        assert time.monotonic() - back < 2.0


async def test_auth_that_comes_back_within_the_second_is_waited_for(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki, up=False) as gate:
        waiting = asyncio.create_task(gate.validate(call()))
        await asyncio.sleep(0.1)
        gate.server.start()
        assert (await waiting).token_id == 7


async def test_nobody_waits_in_memory_while_auth_is_away(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki, up=False) as gate:
        for _ in range(3):
            await asyncio.gather(*(gate.validate(call()) for _ in range(50)), return_exceptions=True)
        assert not gate.client._queue


async def test_a_hanging_auth_is_told_within_a_second_and_its_late_admissions_are_withdrawn(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        await gate.validate(call(request_id=""))
        gate.service.flowing.clear()
        requests = [call() for _ in range(150)]
        started = time.monotonic()
        answers = await asyncio.gather(*(gate.validate(request) for request in requests), return_exceptions=True)
        assert time.monotonic() - started < 1.8
        assert {type(answer) for answer in answers} == {AuthUnavailable}
        await eventually(lambda: not gate.client.ready, 5.0)
        gate.service.flowing.set()  # what it had taken in it does now
        await eventually(lambda: gate.client.ready, 2.0)
        assert (await gate.validate(call(request_id=""))).token_id == 7
        await eventually(lambda: gate.metric("gateway_proxy_outbox_pending") == 0)
        await eventually(lambda: gate.ledger.tokens[TOKEN].held == 0)
        assert gate.ledger.tokens[TOKEN].spent == 0


async def test_an_answer_that_is_lost_leaves_no_hold(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        gate.service.swallow = True
        request = call()
        with pytest.raises(AuthUnavailable):
            await gate.validate(request)
        gate.service.swallow = False
        await eventually(lambda: gate.ledger.state(request.request_id) == "released")
        assert gate.ledger.tokens[TOKEN].held == 0


async def test_a_commit_that_auth_heard_nothing_of_leaves_no_hold(tmp_path, pki, monkeypatch):
    async with client_of(tmp_path / "outbox", pki) as gate:

        def commit(asked: pb.ValidateTokenRequest) -> pb.ValidationResult:
            gate.ledger.validate(asked)
            error = CommitUnheard("")
            return pb.ValidationResult(error=pb.ItemError(code=code_of(error).value[0], reason=error.reason))

        monkeypatch.setattr(gate.service, "_validation", commit)
        request = call()
        with pytest.raises(AuthUnavailable):
            await gate.validate(request)
        await eventually(lambda: gate.ledger.state(request.request_id) == "released")


async def test_an_answer_that_is_lost_once_is_asked_for_again_and_found(tmp_path, pki, monkeypatch):
    monkeypatch.setattr(auth_client, "RPC_TIMEOUT", 0.2)
    async with client_of(tmp_path / "outbox", pki) as gate:
        gate.service.swallow = True
        request = call()
        waiting = asyncio.create_task(gate.validate(request))
        await eventually(lambda: request.request_id in gate.ledger.rows)
        gate.service.swallow = False
        assert (await waiting).held_nanos == 10
        assert len(gate.ledger.rows) == 1
        assert gate.metric("gateway_proxy_outbox_pending") == 0


async def test_a_refusal_after_a_lost_try_withdraws_what_the_lost_one_may_still_do(tmp_path, pki, monkeypatch):
    monkeypatch.setattr(auth_client, "RPC_TIMEOUT", 0.2)
    async with client_of(tmp_path / "outbox", pki) as gate:
        gate.service.flowing.clear()
        request = call("sk-new")
        waiting = asyncio.create_task(gate.validate(request))
        await asyncio.to_thread(gate.service.arrived.wait)
        await asyncio.sleep(0.25)
        gate.service.flowing.set()
        with pytest.raises(TokenUnknown):
            await waiting
        await eventually(lambda: gate.ledger.state(request.request_id) == "withdrawn")


async def test_a_caller_who_leaves_while_he_is_judged_leaves_no_hold(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        await gate.validate(call(request_id=""))
        gate.service.flowing.clear()
        request = call()
        waiting = asyncio.create_task(gate.validate(request))
        await eventually(lambda: gate.client._in_flight == 1)
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.service.flowing.set()
        await eventually(lambda: gate.ledger.state(request.request_id) in {"released", "withdrawn"})
        await eventually(lambda: gate.ledger.tokens[TOKEN].held == 0)


async def test_a_caller_who_leaves_in_the_moment_of_the_grant_leaves_no_hold(tmp_path, pki, monkeypatch):
    async with client_of(tmp_path / "outbox", pki) as gate:
        request = call()
        waiting = asyncio.create_task(gate.validate(request))
        tell = gate.client._tell

        def tell_and_leave(*arguments):
            tell(*arguments)
            waiting.cancel()

        monkeypatch.setattr(gate.client, "_tell", tell_and_leave)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: gate.ledger.state(request.request_id) == "released")


async def test_a_caller_who_left_before_he_was_sent_is_never_asked_for(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki, up=False) as gate:
        request = call()
        waiting = asyncio.create_task(gate.validate(request))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.server.start()
        await gate.validate(call(request_id=""))
        assert gate.ledger.state(request.request_id) == ""
        assert gate.metric("gateway_proxy_outbox_pending") == 0


async def test_a_database_that_is_away_is_told_as_auth_away_and_leaves_little_to_withdraw(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        gate.service.database_away = True
        started = time.monotonic()
        callers = []
        for _ in range(30):
            callers.append(asyncio.create_task(gate.validate(call())))
            await asyncio.sleep(0.005)
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert {type(answer) for answer in answers} == {AuthUnavailable}
        assert time.monotonic() - started < 1.5
        assert gate.metric("gateway_proxy_outbox_pending") < 15  # only who was being asked for in his last moment
        waiting = asyncio.create_task(gate.validate(call()))
        await asyncio.sleep(0.2)
        gate.service.database_away = False
        assert (await waiting).token_id == 7


async def test_an_identity_that_auth_refuses_is_our_fault_and_not_the_callers(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        gate.service.forbidden = True
        with pytest.raises(AuthUnavailable):
            await gate.validate(call())
        with pytest.raises(AuthUnavailable):
            await gate.client.token_usage(TOKEN, "", False)
        assert gate.metric("gateway_proxy_outbox_pending") == 0


async def test_an_id_that_was_used_before_is_refused_and_the_call_that_has_it_is_left_alone(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        request = call()
        await gate.validate(request)
        with pytest.raises(AlreadyExists):
            await gate.validate(call(held=11, request_id=request.request_id))
        await asyncio.sleep(0.1)
        assert gate.ledger.state(request.request_id) == "admitted"


async def test_no_more_than_2000_wait(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki, up=False) as gate:
        answers = await asyncio.gather(*(gate.validate(call()) for _ in range(2_050)), return_exceptions=True)
        kinds = [type(answer) for answer in answers]
        assert (kinds.count(Overloaded), kinds.count(AuthUnavailable)) == (50, 2_000)
        assert {answer.retry_after for answer in answers} == {1.0}


async def test_a_slow_auth_still_serves_those_who_can_wait(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        gate.service.item_seconds = 0.006  # 64 of them take 0.4 s
        answers = []
        async with asyncio.TaskGroup() as group:

            async def one() -> None:
                try:
                    answers.append(await gate.validate(call()))
                except GatewayError as error:
                    answers.append(error)

            for _ in range(60):
                for _ in range(8):  # 160 a second, and it can do 166
                    group.create_task(one())
                await asyncio.sleep(0.05)
        assert sum(isinstance(answer, pb.Grant) for answer in answers) >= len(answers) * 0.9


async def test_the_books_show_the_call_that_has_just_been_answered(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        request = call()
        await gate.validate(request)
        gate.outbox.append(settled(request.request_id), KEY)
        usage = await gate.client.token_usage(TOKEN, "127.0.0.1", True)
        assert (usage.amount_spent_nanos, usage.held_nanos) == (4, 0)
        with pytest.raises(TokenUnknown):
            await gate.client.token_usage("sk-someone-elses", "", False)


async def test_models_are_listed_or_refused(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        response = await gate.client.list_models(pb.ListModelsRequest(token=TOKEN, names=["b", "a"]))
        assert [model.name for model in response.models] == ["a", "b"]
        with pytest.raises(TokenUnknown):
            await gate.client.list_models(pb.ListModelsRequest(token="sk-someone-elses"))


@pytest.mark.parametrize("hangs", [True, False])
async def test_the_books_of_an_auth_that_is_away_are_refused_within_a_second(tmp_path, pki, hangs):
    async with client_of(tmp_path / "outbox", pki) as gate:
        request = call()
        await gate.validate(request)
        if hangs:
            gate.service.flowing.clear()
        else:
            gate.server.stop()
        gate.outbox.append(settled(request.request_id), KEY)
        started = time.monotonic()
        with pytest.raises(AuthUnavailable):
            await gate.client.token_usage(TOKEN, "", False)
        assert time.monotonic() - started < 1.8
        gate.service.flowing.set()


async def test_what_waits_is_told_when_the_proxy_stops(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        gate.service.flowing.clear()
        sent, unsent = call(), call()
        first = asyncio.create_task(gate.validate(sent))
        await eventually(lambda: gate.client._in_flight == 1)
        second = asyncio.create_task(gate.validate(unsent))
        await asyncio.sleep(0)
        started = now()
        await gate.client.close()
        answers = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(answer) for answer in answers] == [AuthUnavailable, AuthUnavailable]
        assert now() - started < 0.9
        gate.service.flowing.set()


async def test_it_beats_as_long_as_it_lives(tmp_path, pki, monkeypatch):
    monkeypatch.setattr(auth_client, "BEAT_INTERVAL", 0.05)
    async with client_of(tmp_path / "outbox", pki) as gate:
        await eventually(lambda: gate.service.beats >= 3)
        await eventually(lambda: gate.client.ready)


async def test_auth_killed_under_load_gives_grants_or_503_and_no_orphaned_hold(tmp_path, pki):
    async with client_of(tmp_path / "outbox", pki) as gate:
        granted: list[str] = []

        async def caller() -> None:
            for _ in range(40):
                request = call()
                try:
                    await gate.validate(request)
                except AuthUnavailable:
                    continue
                granted.append(request.request_id)
                gate.outbox.append(settled(request.request_id), KEY)

        async def nemesis() -> None:
            for _ in range(5):
                await asyncio.sleep(0.15)
                await asyncio.to_thread(gate.server.stop)
                await asyncio.sleep(0.1)
                gate.server.start()

        await asyncio.gather(nemesis(), *(caller() for _ in range(20)))
        await eventually(lambda: gate.metric("gateway_proxy_outbox_pending") == 0, 10.0)
        assert gate.ledger.conflicts == 0
        assert gate.ledger.tokens[TOKEN].held == 0
        assert gate.ledger.tokens[TOKEN].spent == 4 * len(granted)


async def test_a_stopped_auth_is_answered_for_and_found_again(tmp_path, pki):
    """SIGSTOP: the connection stands and nothing comes. Then it goes on, and does what it had been asked before."""
    identities = make_identities(pki, "auth", "proxy")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.auth_service", str(pki / "auth"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    address = f"127.0.0.1:{int(await process.stdout.readline())}"
    replicas = Replicas(address, lambda address: aio_channel(address, identities["proxy"], "auth"))
    outbox = Outbox.open(tmp_path / "outbox", proxy_id=uuid7())
    client = AuthClient(
        replicas=replicas,
        outbox=outbox,
        proxy_id=uuid7(),
        host="here",
        routing=pb.Routing(),
        metrics=BatchMetrics(CollectorRegistry()),
    )
    await client.start()
    waits: list[float] = []
    outcomes: list[str] = []

    async def one() -> None:
        started = now()
        request = call()
        try:
            await client.validate(request, arrived=started)
            outbox.append(settled(request.request_id), KEY)
            outcomes.append("granted")
        except AuthUnavailable:
            outcomes.append("refused")
        waits.append(now() - started)

    async def load(seconds: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(int(seconds * 50)):
                group.create_task(one())
                await asyncio.sleep(0.02)

    try:
        await load(0.5)
        assert set(outcomes) == {"granted"}
        process.send_signal(signal.SIGSTOP)
        await load(2.0)
        assert outcomes.count("refused") >= 98  # the signal takes a moment
        assert max(waits) < 1.8  # a second each, however long auth is stopped
        process.send_signal(signal.SIGCONT)
        await load(0.5)
        assert outcomes[-1] == "granted"
        granted = outcomes.count("granted")
        async with asyncio.timeout(5):
            while (usage := await client.token_usage(TOKEN, "", False)).held_nanos:  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.05)
        assert usage.amount_spent_nanos == 4 * granted
    finally:
        await client.close()
        await outbox.close(0.0)
        await replicas.close()
        process.kill()
        await process.wait()
