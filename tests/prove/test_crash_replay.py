"""C1: the outbox of a dead proxy, with thousands of records, is replayed in seconds; a second time it changes nothing."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import grpc
import pytest

from gateway.ids import uuid7
from gateway.rpc.channel import sync_channel
from gateway.rpc.identity import Identity
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.stubs.auth.v1.auth_pb2_grpc import AuthServiceStub
from services.proxy.outbox_files import Kind, encode
from tests.suite.audit import open_holds
from tests.suite.conftest import RATES
from tests.suite.stack import Stack, wait_for

AT_ONCE = 64  # validations in a batch


def admitted(stack: Stack, token: str, count: int, proxy_id: str) -> list[str]:
    """Has auth admit so many calls of a proxy that is dead, as it would have asked for them; gives their ids."""
    ids = [uuid7() for _ in range(count)]
    with sync_channel(f"127.0.0.1:{stack.auth_port}", Identity.load(stack.data / "pki" / "proxy"), "auth") as channel:
        auth = AuthServiceStub(channel)
        for start in range(0, count, AT_ONCE):
            asked = [
                pb.ValidateTokenRequest(
                    token=token,
                    request_id=request_id,
                    endpoint="/v1/chat/completions",
                    dialect="openai",
                    request_model="gpt-test",
                    candidates=[pb.Candidate(provider="mock", model="gpt-test")],
                    input_token_ceiling=20_000,
                    max_output_tokens=100,
                    proxy_id=proxy_id,
                )
                for request_id in ids[start : start + AT_ONCE]
            ]
            _have_granted(auth, asked)
    return ids


def _have_granted(auth: AuthServiceStub, asked: list[pb.ValidateTokenRequest]) -> None:
    """Asks until all are granted: where the disk is slow, auth may say so, and the same again is harmless."""
    for _ in range(20):
        try:
            answer = auth.BatchValidateTokens(pb.BatchValidateTokensRequest(validations=asked), timeout=10)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            time.sleep(0.25)
            continue
        if all(one.response.HasField("grant") for one in answer.validations):
            return
    raise AssertionError(f"not granted: {asked[0]}")


def outbox_of(folder: Path, proxy_id: str, ids: list[str]) -> tuple[Path, int]:
    """What that proxy would have left: each call opened and settled. Gives the file and the cost of all, in nanos."""
    cost, path = 0, folder / f"{proxy_id}.log"
    folder.mkdir(mode=0o700, exist_ok=True)
    with path.open("wb") as file:
        for number, request_id in enumerate(ids):
            usage = {"prompt_tokens": 100 + number, "completion_tokens": 1 + number % 100}
            cost += RATES.nanos(usage)
            report = pb.RecordUsageRequest(
                request_id=request_id,
                outcome=pb.OUTCOME_SETTLED,
                served=pb.Candidate(provider="mock", model="gpt-test"),
                response_model="gpt-test",
                usage=[
                    pb.UsageItem(unit="input", count=usage["prompt_tokens"]),
                    pb.UsageItem(unit="output", count=usage["completion_tokens"]),
                ],
                source=pb.USAGE_SOURCE_PROVIDER,
                status=200,
                duration_ms=100,
            )
            file.write(encode(Kind.OPENED, request_id.encode()))
            file.write(encode(Kind.SETTLEMENT, report.SerializeToString(deterministic=True)))
    return path, cost


def cpu_seconds(stack: Stack, names: list[str]) -> float:
    """What these processes have used of the CPU so far: on a machine that others use too, it says more than the time."""
    stats = [Path(f"/proc/{stack.processes[name].pid}/stat").read_text() for name in names]
    ticks = [int(part) for stat in stats for part in stat.rpartition(")")[2].split()[11:13]]  # of user and of system
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


@pytest.mark.proves("C1")
async def test_the_outbox_of_a_dead_proxy_is_replayed_in_seconds_and_a_second_time_changes_nothing(site, proof, tmp_path):
    site = site("auth", ready=False, is_forked=True)
    stack, records = site.stack, proof.size(10_000)
    wait_for("auth serves", lambda: all(stack.is_ready(name) for name in site.all_of("auth")))
    token, proxy_id = site.token(max_amount=100_000), uuid7()
    path, cost = outbox_of(stack.data / "outbox", proxy_id, admitted(stack, token, records, proxy_id))
    copy = shutil.copy(path, tmp_path / "copy")
    proof.equals("calls open, of a proxy that is dead", open_holds(stack.database), records)

    before = cpu_seconds(stack, site.all_of("auth"))
    started = time.monotonic()
    stack.start(*site.all_of("proxy"))
    wait_for("all are settled", lambda: open_holds(stack.database) == 0, seconds=60)
    spent = cpu_seconds(stack, [*site.all_of("auth"), *site.all_of("proxy")]) - before
    proof.note("CPU seconds of auths and proxies for it", round(spent, 2))
    proof.within(f"{records} records replayed, from the start of the next proxy on,", time.monotonic() - started, 5)
    wait_for("the file is gone", lambda: not path.exists())
    row = site.installation.row(token)
    proof.equals("charged, in nanos", row["total_spent_nanos"], cost)
    site.settle(RATES)

    for name in (*site.all_of("auth"), *site.all_of("proxy")):
        stack.kill(name)
    shutil.copy(copy, path)
    stack.start(*site.all_of("auth"), *site.all_of("proxy"))
    wait_for("the same file was replayed", lambda: not path.exists(), seconds=60)
    again = site.installation.row(token)
    proof.equals("after the same records once more: charged", again["total_spent_nanos"], cost)
    proof.equals("calls counted", again["request_count"], row["request_count"])
    proof.equals("reports refused and moved aside", [one.name for one in path.parent.glob("refused-*")], [])
    site.settle(RATES)
