"""Proxies in front of the edge: whose word about the caller counts; a stranger's changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from services.proxy.forwarded import MOST_HOPS, TrustedProxies
from tests.conftest import LogLines
from tests.proxy.edge_harness import chat, head, running_edge, status_of

TRUSTED = TrustedProxies(map(ip_network, ("10.0.0.0/8", "127.0.0.1", "fd00::/8")))


def caller(
    *lines: str, peer: str = "10.0.0.1", proto: Sequence[str] = (), trusted: TrustedProxies = TRUSTED
) -> tuple[str, str]:
    headers = CIMultiDict([("X-Forwarded-For", line) for line in lines] + [("X-Forwarded-Proto", line) for line in proto])
    return trusted.caller(make_mocked_request("GET", "/", headers=headers).clone(remote=peer))


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ((), "10.0.0.1"),
        (("",), "10.0.0.1"),
        (("203.0.113.7",), "203.0.113.7"),
        (("203.0.113.7, 10.0.0.2",), "203.0.113.7"),
        (("198.51.100.1, 203.0.113.7",), "203.0.113.7"),  # what the caller wrote himself stands to the left
        (("198.51.100.1", "203.0.113.7"), "203.0.113.7"),
        (("198.51.100.1", "203.0.113.7, 10.9.9.9", "10.0.0.3"), "203.0.113.7"),
        (("10.0.0.9, 10.0.0.2",), "10.0.0.9"),  # all of them trusted: the farthest
        (("203.0.113.7:4711",), "203.0.113.7"),
        (("2001:db8::7",), "2001:db8::7"),
        (("[2001:db8::7]",), "2001:db8::7"),
        (("[2001:db8::7]:443, fd00::1",), "2001:db8::7"),
        (("::ffff:203.0.113.7, ::ffff:10.0.0.2",), "203.0.113.7"),
        (("2001:DB8:0:0::7",), "2001:db8::7"),
        (("203.0.113.7,",), "203.0.113.7"),
        ((" , 203.0.113.7 ,, ",), "203.0.113.7"),
        (("198.51.100.1, unknown",), "10.0.0.1"),
        (("198.51.100.1, _hidden, 10.0.0.2",), "10.0.0.2"),
        (("198.51.100.1, nonsense, 10.0.0.2",), "10.0.0.2"),
        (("198.51.100.1, 1.2.3",), "10.0.0.1"),
        (("198.51.100.1, 203.0.113.7:x",), "10.0.0.1"),
        (("198.51.100.1, [2001:db8::7]x",), "10.0.0.1"),
        (("for=203.0.113.7",), "10.0.0.1"),
    ],
)
def test_the_caller_is_the_first_hop_from_the_right_that_is_no_trusted_proxy(lines: tuple[str, ...], address: str) -> None:
    assert caller(*lines)[0] == address


def test_a_chain_of_a_thousand_hops_is_followed_so_far_and_no_farther() -> None:
    chain = [f"10.0.{number // 250}.{number % 250}" for number in range(1000)]
    assert caller(", ".join(["203.0.113.7", *chain]))[0] == chain[-MOST_HOPS]
    assert caller("203.0.113.7, " + ", ".join(chain[: MOST_HOPS - 1]))[0] == "203.0.113.7"


@pytest.mark.parametrize("peer", ["203.0.113.7", "", "192.168.0.1", "fe80::1%eth0"])
def test_what_a_stranger_writes_changes_nothing(peer: str) -> None:
    assert caller("198.51.100.1", peer=peer, proto=["https"]) == (peer, "http")


def test_a_trusted_peer_may_be_written_as_a_mapped_address() -> None:
    assert caller("203.0.113.7", peer="::ffff:10.0.0.1")[0] == "203.0.113.7"


@pytest.mark.parametrize(
    ("lines", "scheme"),
    [
        ([], "http"),
        (["https"], "https"),
        (["HTTPS"], "https"),
        (["https, http"], "http"),
        (["http", "https"], "https"),
        (["ws"], "http"),
    ],
)
def test_the_scheme_is_what_the_nearest_trusted_proxy_says(lines: list[str], scheme: str) -> None:
    assert caller(proto=lines)[1] == scheme


FORGED = {
    "X-Forwarded-For": "203.0.113.7",
    "X-Real-IP": "203.0.113.8",
    "Forwarded": "for=203.0.113.9;proto=https",
    "X-Forwarded-Proto": "https",
    "X-Client-IP": "203.0.113.10",
    "True-Client-IP": "203.0.113.11",
}


@pytest.mark.parametrize("trusted", [(), "203.0.113.0/24"], ids=["nobody trusted", "others trusted"])
async def test_a_stranger_changes_neither_log_nor_ledger_nor_administration(trusted: Any, log_lines: LogLines) -> None:
    async with running_edge(trusted_proxies=trusted) as edge:
        async with edge.post(chat(), **FORGED) as response:
            assert response.status == 200
        async with edge.post(chat(prompt="x" * 100_000), **FORGED) as response:
            assert response.status == 200
        async with edge.get("/admin/tokens", **FORGED) as response:
            assert await response.json() == {"admin": "/admin/tokens", "scheme": "http", "address": "127.0.0.1"}
        assert {request.client_ip for request in (*edge.auth.admitted.values(), *edge.auth.looks)} == {"127.0.0.1"}
    assert {line["client_ip"] for line in log_lines() if line["event"] == "request"} == {"127.0.0.1"}


async def test_a_stranger_gets_no_further_tries_by_naming_other_addresses() -> None:
    async with running_edge() as edge:
        addresses = itertools.count(1)
        answers = [
            await edge.raw(
                head("GET", "/v1/models", f"X-Forwarded-For: 203.0.113.{next(addresses)}", "Connection: close").replace(
                    b"sk-test-token", b"sk-none-token"
                )
            )
            for _ in range(32)
        ]
    assert [status_of(answer) for answer in answers[29:]] == [401, 429, 429]


async def test_a_trusted_proxy_tells_the_caller_to_log_ledger_and_administration(log_lines: LogLines) -> None:
    async with running_edge(trusted_proxies="127.0.0.0/8") as edge:
        forwarded = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7", "X-Forwarded-Proto": "https"}
        async with edge.post(chat(), **forwarded) as response:
            assert response.status == 200
        async with edge.get("/admin/tokens", **forwarded) as response:
            assert await response.json() == {"admin": "/admin/tokens", "scheme": "https", "address": "203.0.113.7"}
        assert [request.client_ip for request in edge.auth.admitted.values()] == ["203.0.113.7"]
        for number in range(32):  # each address has tries of its own
            async with edge.session.get(
                edge.url + "/v1/models", headers={"Authorization": "Bearer unknown", "X-Forwarded-For": f"203.0.113.{number}"}
            ) as response:
                assert response.status == 401
    assert {line["client_ip"] for line in log_lines() if line["event"] == "request"} >= {"203.0.113.7", "203.0.113.31"}
