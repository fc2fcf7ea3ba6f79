"""Runs nginx and Caddy with the shipped configurations in front of a gateway, and looks at what reaches whom, and when.

`python -m tests.deploy.try_fronts`. Needs both programs (`apt-get install nginx caddy`) and half a minute. Exit code 0: all of
it held; 1: the first thing that did not is told; 2: a program is missing.
"""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.suite.stack import REPOSITORY, Stack, free_port, wait_for
from tests.support import edge_certificates

TOKEN = "a-token-to-try-the-fronts-with"
FORGED = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.8", "X-Forwarded-Proto": "gopher"}
BODY = 20_000_000
LATE = 0.15
"""Seconds that a front may hold the first event back."""


class Wrong(Exception):
    """What did not hold."""


def main() -> int:
    """Runs both; gives the exit code."""
    missing = [name for name in ("nginx", "caddy") if shutil.which(name) is None]
    if missing:
        print(f"try-fronts: {' and '.join(missing)} not found", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-fronts-") as folder, gateway(Path(folder)) as stack:
            direct = look(stack, "directly", stack.http_port, None)
            for name, front in (("nginx", nginx), ("caddy", caddy)):
                with front(Path(folder), stack.http_port) as port:
                    through = look(stack, name, port, edge_certificates.trust())
                    require(through - direct < LATE, f"{name} held the first event back for {through - direct:.3f} s")
    except Wrong as wrong:
        print(f"try-fronts: {wrong}", file=sys.stderr)
        return 1
    print("try-fronts: all of it held")
    return 0


@contextmanager
def gateway(folder: Path) -> Iterator[Stack]:
    """A gateway with the demo provider, which trusts 127.0.0.1."""
    with Stack(folder / "gateway", "", {"GATEWAY_TRUSTED_PROXIES": "127.0.0.1", "GATEWAY_DEMO_PACE": "20"}) as stack:
        stack.gateway("init", "--no-secrets", "--json")
        stack.start("demo", "auth", "admin", "proxy")
        stack.wait_until_ready()
        stack.insert_token(TOKEN)
        yield stack


@contextmanager
def nginx(folder: Path, gateway_port: int) -> Iterator[int]:
    """nginx with deploy/nginx/gateway.conf at other ports and with a certificate of the tests."""
    port, plain = free_port(), free_port()
    cert, key, _ = edge_certificates.write(folder)
    text = (REPOSITORY / "deploy/nginx/gateway.conf").read_text()
    for old, new in (
        ("server 127.0.0.1:8080;", f"server 127.0.0.1:{gateway_port};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("    listen [::]:443 ssl;\n", ""),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("    listen [::]:80;\n", ""),
        ("/etc/letsencrypt/live/gateway.example.com/fullchain.pem", str(cert)),
        ("/etc/letsencrypt/live/gateway.example.com/privkey.pem", str(key)),
    ):
        require(old in text, f"deploy/nginx/gateway.conf has no {old!r}")
        text = text.replace(old, new)
    (folder / "site.conf").write_text(text)
    main_conf = folder / "nginx.conf"
    main_conf.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log stderr warn; events {{ worker_connections 256; }}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; "
        f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; include {folder}/site.conf; }}\n"
    )
    with running(["nginx", "-p", str(folder), "-c", str(main_conf)], port):
        connection = http.client.HTTPConnection("127.0.0.1", plain, timeout=5)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {TOKEN}"})
        require(connection.getresponse().status == 403, "plain http is served")
        connection.close()
        yield port


@contextmanager
def caddy(folder: Path, gateway_port: int) -> Iterator[int]:
    """Caddy with deploy/caddy/Caddyfile at another port and with a certificate of the tests."""
    port = free_port()
    cert, key, _ = edge_certificates.write(folder)
    text = (REPOSITORY / "deploy/caddy/Caddyfile").read_text()
    for old, new in (
        ("{\n\tservers {", "{\n\tadmin off\n\tauto_https disable_redirects\n\tservers {"),
        ("gateway.example.com {", f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {cert} {key}"),
        ("reverse_proxy 127.0.0.1:8080 {", f"reverse_proxy 127.0.0.1:{gateway_port} {{"),
    ):
        require(old in text, f"deploy/caddy/Caddyfile has no {old!r}")
        text = text.replace(old, new)
    (folder / "Caddyfile").write_text(text)
    with running(["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"], port):
        yield port


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """A front until the end of the block."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(f"{command[0]} listens", lambda: Stack.listens(port) or process.poll() is not None)
            if process.poll() is not None:
                log.seek(0)
                raise Wrong(f"{command[0]} ended: {log.read()[-2000:]}")
            yield
        finally:
            process.terminate()
            process.wait(10)


def look(stack: Stack, name: str, port: int, context: ssl.SSLContext | None) -> float:
    """Sends calls; gives the median seconds to the first event of a stream. Raises Wrong."""
    status, headers, answer = post(port, context, "Hello", **FORGED)
    require(status == 200 and "choices" in json.loads(answer), f"{name}: {status} {answer[:300]!r}")
    if context is not None:
        address = logged(stack, headers["x-request-id"])
        require(address == "127.0.0.1", f"{name}: the caller wrote an address into the log: {address}")
    firsts, gaps = [], []
    for _ in range(3):
        first, between = timed_stream(port, context)
        firsts.append(first)
        gaps += between
    started = time.monotonic()
    status, _, answer = post(port, context, "x" * BODY)
    require(status == 200, f"{name}: a body of {BODY} bytes: {status} {answer[:300]!r}")
    took = time.monotonic() - started
    status, _, answer = post(port, context, "x" * (40 << 20))
    require(status == 413, f"{name}: a body of 40 MiB: {status}")
    first = statistics.median(firsts)
    middle, most = statistics.median(gaps) * 1000, max(gaps) * 1000
    print(
        f"{name:9} first event after {first * 1000:.0f} ms; between events {middle:.0f} ms in the middle, {most:.0f} ms at "
        f"most; 20 MB in {took:.2f} s; 40 MiB: 413"
    )
    return first


def connect(port: int, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    """A connection to a front over TLS, or to the gateway itself."""
    if context is None:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    return http.client.HTTPSConnection("localhost", port, timeout=30, context=context)


def post(port: int, context: ssl.SSLContext | None, prompt: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """A plain call: status, headers, body."""
    connection = connect(port, context)
    with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):  # refused before it was sent whole: the answer is there
        connection.request("POST", "/v1/chat/completions", body(prompt), {"Authorization": f"Bearer {TOKEN}", **headers})
    try:
        response = connection.getresponse()
        return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def timed_stream(port: int, context: ssl.SSLContext | None) -> tuple[float, list[float]]:
    """Seconds to the first event of a stream, and between the events. Raises Wrong where they did not come one by one."""
    connection = connect(port, context)
    connection.connect()
    started = time.monotonic()
    connection.request("POST", "/v1/chat/completions", body("Hello", stream=True), {"Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    times, ended = [], False
    while line := response.readline():
        if line.startswith(b"data: "):
            times.append(time.monotonic())
            ended = ended or b"[DONE]" in line
    connection.close()
    require(ended and len(times) > 5, f"the stream has {len(times)} events, and its end is {'there' if ended else 'missing'}")
    return times[0] - started, [later - earlier for earlier, later in itertools.pairwise(times)]


def body(prompt: str, **more: object) -> bytes:
    """A call of the demo provider."""
    return json.dumps({"model": "demo", "messages": [{"role": "user", "content": prompt}], "max_tokens": 20, **more}).encode()


def logged(stack: Stack, request_id: str) -> str:
    """The caller's address in the proxy's log."""
    for log in stack.logs.glob("proxy-*.log"):
        for line in log.read_text().splitlines():
            if request_id in line and '"event": "request"' in line:
                return str(json.loads(line)["client_ip"])
    raise Wrong(f"the log has no line of {request_id}")


def require(holds: bool, otherwise: str) -> None:
    """Raises Wrong unless it holds."""
    if not holds:
        raise Wrong(otherwise)


if __name__ == "__main__":
    sys.exit(main())
