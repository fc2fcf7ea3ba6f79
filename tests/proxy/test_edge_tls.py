"""The edge over TLS: what it speaks, how it takes over renewed certificates, and who does not shake hands."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.process.tls import CertificateFault, load_certificate
from services.proxy import listener, tls
from tests.conftest import LogLines
from tests.proxy.edge_harness import Edge, chat, head, running_edge, status_of, until
from tests.support import edge_certificates

HANDSHAKE = b"\x16\x03\x01"
"""The first bytes of a handshake."""


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY", 0.05)


@asynccontextmanager
async def secured(folder: Path, **more: object) -> AsyncIterator[Edge]:
    """The edge with the certificate of a folder; its session trusts the authority of the tests."""
    async with running_edge(tls_cert=str(folder / "cert.pem"), tls_key=str(folder / "key.pem"), **more) as edge:  # type: ignore[arg-type]
        await edge.session.close()
        connector = aiohttp.TCPConnector(ssl=edge_certificates.trust())
        async with aiohttp.ClientSession(connector=connector) as session:
            edge.session = session
            yield edge


async def served(edge: Edge, context: ssl.SSLContext | None = None) -> tuple[int, str | None, str | None]:
    """Serial number, ALPN and TLS version that a new connection gets."""
    context = context or edge_certificates.trust()
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port, ssl=context)
    try:
        secure = writer.get_extra_info("ssl_object")
        der = secure.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number, secure.selected_alpn_protocol(), secure.version()
    finally:
        writer.close()
        await writer.wait_closed()


async def served_until(edge: Edge, serial: int, seconds: float = 2.0) -> None:
    async with asyncio.timeout(seconds):
        while (await served(edge))[0] != serial:  # noqa: ASYNC110 - only a new connection tells
            await asyncio.sleep(0.05)


async def test_calls_are_answered_over_https_plain_and_streamed(tmp_path: Path) -> None:
    edge_certificates.write(tmp_path)
    async with secured(tmp_path) as edge:
        async with edge.post(chat()) as response:
            assert response.status == 200
            assert (await response.json())["choices"]
        async with edge.post(chat(stream=True)) as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        async with edge.post(chat(prompt="x" * 900_000)) as response:
            assert response.status == 200
        assert [call.status for call in edge.provider.calls] == [200, 200, 200]


async def test_it_speaks_tls_1_2_and_above_with_forward_secrecy_and_names_its_protocol(tmp_path: Path) -> None:
    _, _, serial = edge_certificates.write(tmp_path)
    async with secured(tmp_path) as edge:
        context = edge_certificates.trust()
        context.set_alpn_protocols(["h2", "http/1.1"])
        assert await served(edge, context) == (serial, "http/1.1", "TLSv1.3")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await served(edge, context))[2] == "TLSv1.2"
        context.set_ciphers("AES256-SHA256:AES128-SHA:ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0")
        with pytest.raises(OSError):  # an alert, or the end
            await served(edge, context)


async def test_a_renewed_certificate_is_served_within_two_seconds_while_an_old_stream_goes_on(
    tmp_path: Path, log_lines: LogLines
) -> None:
    _, _, first = edge_certificates.write(tmp_path)
    async with secured(tmp_path) as edge:
        async with edge.post(chat(prompt="chunks:12 tokens:12 seconds:2.5", stream=True)) as stream:
            beginning = await stream.content.readany()
            assert (await served(edge))[0] == first
            _, _, second = edge_certificates.write(tmp_path)
            await served_until(edge, second)
            rest = await stream.read()
        assert (beginning + rest).endswith(b"data: [DONE]\n\n")
    assert [line["event"] for line in log_lines() if "certificate" in line["event"]] == ["certificate_renewed"]


async def test_a_link_that_is_turned_to_another_folder_is_noticed(tmp_path: Path) -> None:
    for name in ("..1", "..2"):
        (tmp_path / name).mkdir()
    edge_certificates.write(tmp_path / "..1")
    (tmp_path / "..data").symlink_to("..1")
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    async with secured(tmp_path) as edge:
        _, _, second = edge_certificates.write(tmp_path / "..2")
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        await served_until(edge, second)


async def test_a_broken_pair_is_told_once_and_the_old_one_kept_until_a_good_one_comes(
    tmp_path: Path, log_lines: LogLines
) -> None:
    _, key, first = edge_certificates.write(tmp_path)
    async with secured(tmp_path) as edge:
        key.write_bytes(edge_certificates.issue()[1])

        def told() -> list[str]:
            return [line["error"] for line in log_lines() if line["event"] == "certificate_rejected"]

        await until(lambda: len(told()) == 1)
        assert "is not the key of" in told()[0]
        assert (await served(edge))[0] == first
        key.unlink()
        await until(lambda: len(told()) == 2)
        assert "No such file" in told()[1]
        assert (await served(edge))[0] == first
        _, _, third = edge_certificates.write(tmp_path)
        await served_until(edge, third)
    assert len(told()) == 2


async def test_an_expired_certificate_is_served_with_a_warning(tmp_path: Path, log_lines: LogLines) -> None:
    edge_certificates.write(tmp_path, days=-1)
    async with secured(tmp_path):
        pass
    [line] = [line for line in log_lines() if line["event"] == "certificate_dates"]
    assert line["level"] == "warning"
    assert "it expired on" in line["concern"]


async def test_plain_http_on_the_port_for_https_ends_with_one_line_in_the_log(tmp_path: Path, log_lines: LogLines) -> None:
    edge_certificates.write(tmp_path)
    async with secured(tmp_path) as edge:
        for _ in range(5):
            answer = await edge.raw(head("GET", "/healthz"))
            assert not answer.startswith(b"HTTP")
        async with edge.get("/healthz") as response:
            assert response.status == 200
    lines = [line for line in log_lines() if line["event"] == "tls_handshake_failed"]
    assert {line["reason"] for line in lines} == {"this port speaks https, and plain http came"}
    assert lines[0]["client_ip"] == "127.0.0.1"
    assert "Traceback" not in json.dumps(log_lines())


async def test_a_handshake_that_is_never_done_is_ended_and_counts_as_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_TIME", 1.0)
    edge_certificates.write(tmp_path)
    async with secured(tmp_path, connections=3) as edge:
        waiting = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(3)]
        for _, writer in waiting:
            writer.write(HANDSHAKE)
        await until(lambda: edge.server.open_connections == 3)
        await asyncio.sleep(0.1)  # they have spoken, and do not give way any more
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        waiting.append((reader, writer))
        started = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionError):
            assert await reader.read() == b""
            raise ConnectionError
        assert asyncio.get_running_loop().time() - started < 0.5, "what comes above the most is not waited for"
        async with asyncio.timeout(5):
            for reader, _ in waiting[:3]:
                with pytest.raises(ConnectionError):
                    assert await reader.read() == b""
                    raise ConnectionError
        assert edge.server.open_connections == 0
        async with edge.get("/healthz") as response:
            assert response.status == 200
        for _, writer in waiting:
            writer.close()
    assert "Traceback" not in json.dumps(log_lines())


async def test_who_does_not_begin_a_handshake_gives_way_and_has_no_longer_than_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_TIME", 0.5)
    edge_certificates.write(tmp_path)
    async with secured(tmp_path, connections=2) as edge:
        silent = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(2)]
        await until(lambda: edge.server.open_connections == 2)
        async with edge.get("/healthz") as response:
            assert response.status == 200
        assert edge.server.ended == {"gave_way": 1}
        async with asyncio.timeout(5):
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()
    assert not [line for line in log_lines() if line["event"] == "tls_handshake_failed"]


@pytest.mark.parametrize("sent", [b"", HANDSHAKE])
async def test_the_edge_ends_while_a_handshake_goes_on_or_has_not_begun(tmp_path: Path, sent: bytes) -> None:
    edge_certificates.write(tmp_path)
    async with secured(tmp_path) as edge:
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(sent)
        await until(lambda: edge.server.open_connections == 1)
        await asyncio.sleep(0.05)
    assert edge.server.open_connections == 0
    writer.close()


async def test_a_caller_whose_large_body_is_not_wanted_gets_the_answer_over_tls_too(tmp_path: Path) -> None:
    edge_certificates.write(tmp_path)
    async with secured(tmp_path) as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, ssl=edge_certificates.trust())
        writer.write(head("POST", "/v1/nothing", "Content-Length: 30000000") + b"x" * 200_000)
        assert status_of(await reader.readuntil(b"\r\n")) == 404
        writer.close()


def test_a_key_of_another_kind_is_told_as_the_key_of_another_certificate(tmp_path: Path) -> None:
    cert, key, _ = edge_certificates.write(tmp_path)
    pem, kind, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(pem, kind, plain))
    with pytest.raises(CertificateFault, match="is not the key of"):
        load_certificate(cert, key)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    cert, key, _ = edge_certificates.write(tmp_path)
    loaded = load_certificate(cert, key)
    assert loaded.names == ("localhost", "127.0.0.1")
    assert loaded.concern() == ""
    other, secret = tmp_path / "other.pem", edge_certificates.issue()[1]
    other.write_bytes(secret)
    with pytest.raises(CertificateFault, match="is not the key of"):
        load_certificate(cert, other)
    other.write_bytes(edge_certificates.issue(password=b"secret")[1])
    with pytest.raises(CertificateFault, match="passphrase"):
        load_certificate(cert, other)
    other.write_bytes(b"nothing")
    with pytest.raises(CertificateFault, match="holds no private key"):
        load_certificate(cert, other)
    with pytest.raises(CertificateFault, match="holds no certificate"):
        load_certificate(other, key)
    with pytest.raises(CertificateFault, match=r"gone\.pem: No such file"):
        load_certificate(tmp_path / "gone.pem", key)
    with pytest.raises(CertificateFault, match="Is a directory"):
        load_certificate(tmp_path, key)
    if os.geteuid() != 0:
        other.chmod(0)
        with pytest.raises(CertificateFault, match="Permission denied"):
            load_certificate(cert, other)


def test_many_callers_who_come_and_go_are_answered_on_the_loop_that_production_uses(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop", reason="absent on some platforms, where asyncio's own loop is used")
    _, _, serial = edge_certificates.write(tmp_path)

    async def calls() -> None:
        async with secured(tmp_path) as edge:
            for _ in range(8):
                assert [answer[0] for answer in await asyncio.gather(*(served(edge) for _ in range(5)))] == [serial] * 5
            async with edge.post(chat(stream=True)) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")

    uvloop.run(calls())
