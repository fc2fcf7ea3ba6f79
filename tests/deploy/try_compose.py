"""Brings the Compose stacks up from this checkout, uses them as the documentation says, and takes them down again.

`make compose-check`, or `python3 -m tests.deploy.try_compose`. Needs a Docker engine with Compose 2.24.4 or newer, and about
four minutes. Exit code 0: all of it held; 1: the first thing that did not is told; 2: there is no engine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.deploy.engine import PATIENCE, Project, Refused, ask, chat, has_engine

SERVICES = ("auth", "admin", "proxy", "demo")
# Stopping waits this long for balancers to notice; nobody does here.
SETTINGS = {"GATEWAY_LAME_DUCK": "1", "GATEWAY_DEMO_PACE": "20"}


def main() -> int:
    """Runs both stacks; gives the exit code."""
    if not has_engine():
        print("compose-check: no Docker engine answers, or Compose is missing", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was brought up is taken down here, too
    name = f"gateway-zero-check-{os.getpid()}"
    try:
        run(Project(name, settings=SETTINGS), on_one_machine, "--build")
        run(Project(name, "deploy/compose.postgres.yml", settings=SETTINGS), on_postgres, *_SCALED)
    except Refused as refused:
        print(f"compose-check: {refused}", file=sys.stderr)
        return 1
    finally:
        subprocess.run(["docker", "image", "rm", "--force", f"{name}-image"], capture_output=True, check=False, timeout=60)
    print("compose-check: all of it held")
    return 0


_SCALED = ("--scale", "proxy=2", "--scale", "auth=2")


def run(project: Project, use: Callable[[Project], None], *options: str) -> None:
    """Brings a project up, uses it, and leaves nothing of it."""
    try:
        said(f"{use.__name__}: healthy after {project.start(*options):.1f} s, image and all")
        use(project)
    finally:
        project.stop("--volumes", "--remove-orphans")


def on_one_machine(project: Project) -> None:
    """SQLite: the documented first steps, a proxy that dies, a restart of everything."""
    token, curl = project.first_secrets()
    if shutil.which("curl"):
        answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=False, timeout=60)
        expect("the printed request answers", "choices" in json.loads(answer.stdout or "{}"), answer)
    first_steps(project, project.first_port, token)
    explain(project)
    insert = "INSERT INTO client_tokens (name, token) VALUES ('my-first-token', 'my-token')"
    project.compose("exec", "-T", "auth", "python", "-m", "sqlite3", "/data/gateway.db", insert)
    expect("a token inserted by SQL is taken", *ok(chat(project.first_port, "my-token")))
    revoke(project, token, project.first_port)
    harden(project)
    keep_secrets_apart(project)
    outlive_a_kill(project, token, project.first_port, project.first_port)
    reconcile(project)
    restore(project, token)
    project.stop()
    said(f"down and up: healthy after {project.start():.1f} s")
    expect("tokens outlive `down`", *ok(chat(project.first_port, token)))
    expect("secrets are told once", "client token" not in project.compose("logs", "init"), "init told them again")
    reconcile(project)
    project.compose("stop", "--timeout", "60")
    codes = {container["Name"]: container["State"]["ExitCode"] for container in project.containers()}
    expect("everything stops by itself, with exit code 0", not any(codes.values()), codes)


def on_postgres(project: Project) -> None:
    """PostgreSQL and two of each: every proxy answers, whichever auth it asks."""
    token, _ = project.first_secrets()
    ports = [int(project.compose("port", "--index", str(index), "proxy", "8080").rpartition(":")[2]) for index in (1, 2)]
    expect(
        "the proxies have different ports, the told one among them",
        {*ports} == {project.first_port, project.first_port + 1},
        ports,
    )
    for port in ports:
        first_steps(project, port, token)
    explain(project)
    insert = "INSERT INTO client_tokens (name, token) VALUES ('my-first-token', 'my-token')"
    project.compose("exec", "-T", "postgres", "psql", "-U", "gateway", "-d", "gateway", "-c", insert)
    for port in ports:
        expect("a token inserted by SQL is taken by each proxy", *ok(chat(port, "my-token")))
    revoke(project, token, *ports)
    harden(project)
    outlive_a_kill(project, token, *ports)
    reconcile(project)


def first_steps(project: Project, port: int, token: str) -> None:
    """A plain and a streamed call, the holder's balance, a token by command line."""
    expect("a plain call answers", *ok(chat(port, token)))
    status, text = chat(port, token, stream=True)
    expect("a streamed call ends as it should", status == 200 and text.rstrip().endswith("data: [DONE]"), text[-200:])
    expect("the balance is told", *ok(ask(port, "/v1/token/balance", token)))
    made = project.compose("exec", "-T", "admin", "gateway", "token", "create", "--name", "app", "--max-amount", "5", "--json")
    expect("a token made by command line is taken", *ok(chat(port, json.loads(made)["token"])))


def revoke(project: Project, token: str, *ports: int) -> None:
    """Revokes what was issued to a service of the user's own, and the proxies' certificate, which is issued anew."""
    project.compose("run", "--rm", "-T", "init", "identity", "create", "billing", "--tar")
    project.compose("run", "--rm", "-T", "init", "identity", "revoke", "billing")
    told = json.loads(project.compose("exec", "-T", "admin", "gateway", "identity", "list", "--json"))["identities"]
    expect(
        "a revoked identity is told as such", [(one["name"], one["state"]) for one in told] == [("billing", "revoked")], told
    )
    project.compose("run", "--rm", "-T", "init", "identity", "revoke", "proxy")
    for port in ports:
        expect("the proxies go on with the certificate that took its place", *ok(chat(port, token)))


def explain(project: Project) -> None:
    """The operator, whose certificate is at admin, asks auth about the first token."""
    told = project.compose("exec", "-T", "admin", "gateway", "explain", "--token", "1", "--model", "demo", "--json")
    expect("a call of the first token is explained", json.loads(told)["verdict"] == "granted", told)


def harden(project: Project) -> None:
    """What the engine itself says of each container of ours: user, file system, capabilities, limits, published ports."""
    for container in project.containers():
        name, config, host = container["Name"], container["Config"], container["HostConfig"]
        service = config["Labels"]["com.docker.compose.service"]
        published = [at["HostIp"] for ports in (host["PortBindings"] or {}).values() for at in ports]
        facts = {
            "is read-only": host["ReadonlyRootfs"],
            "drops all capabilities": host["CapDrop"] == ["ALL"],
            "cannot gain privileges": "no-new-privileges:true" in host["SecurityOpt"],
            "is limited": host["Memory"] > 0 and host["PidsLimit"] > 0 and host["NanoCpus"] > 0,
            "publishes 8080 of the proxy on loopback, and nothing else": [*(host["PortBindings"] or {})]
            == (["8080/tcp"] if service == "proxy" else [])
            and {*published} <= {"127.0.0.1"},
            "has no password in its environment": not any(re.match("[A-Z_]*PASSWORD=.", line) for line in config["Env"]),
        }
        if service != "postgres":  # whose image becomes its own user itself, and needs some capabilities for that
            facts |= {"runs as 10001": config["User"] == "10001:10001", "has none of them": not host["CapAdd"]}
        broken = [fact for fact, holds in facts.items() if not holds]
        expect(f"{name} {', '.join(facts)}", not broken, (broken, {"Config": config, "HostConfig": host}))


def keep_secrets_apart(project: Project) -> None:
    """What each container can read of the installation's secrets."""
    own = {"auth": {"keys", "auth"}, "admin": {"keys", "admin", "operator"}, "proxy": {"proxy"}, "demo": set[str]()}
    script = "import pathlib; print(*{p.parent.name for p in pathlib.Path('/data').rglob('*key*') if p.is_file()})"
    for service, expected in own.items():
        seen = set(project.compose("exec", "-T", service, "python", "-c", script).split())
        expect(f"{service} sees its own secrets and no other's", seen == expected, seen)


def outlive_a_kill(project: Project, token: str, port: int, witness: int) -> None:
    """Kills the proxy at one port amid a stream: whoever is there next takes over its outbox, and nothing stays held.

    witness: the port of the proxy that is asked afterwards; where there is one proxy, its own.
    """
    before = balance(witness, token)
    cut = threading.Thread(target=chat, args=(port, token), kwargs={"stream": True, "words": "Hello " * 20}, daemon=True)
    cut.start()
    until("a call is open", lambda: balance(witness, token)["held"] > 0)
    (victim,) = [
        container for container in project.containers("proxy") if str(port) in json.dumps(container["NetworkSettings"])
    ]
    subprocess.run(["docker", "kill", "--signal", "KILL", victim["Id"]], capture_output=True, check=True, timeout=60)
    cut.join(60)
    subprocess.run(["docker", "start", victim["Id"]], capture_output=True, check=True, timeout=60)
    until("the successor settles what the dead proxy had begun", lambda: balance(witness, token)["held"] == 0)
    after = balance(witness, token)
    expect("the call that was cut is charged", after["amount_spent"] > before["amount_spent"], (before, after))


def restore(project: Project, token: str) -> None:
    """Backs up, deletes everything, restores: the documented commands, with the same token afterwards."""
    project.compose("run", "--rm", "init", "backup", "--out", "/data/backups/now.tar")
    backup = project.compose_bytes("run", "--rm", "-T", "--entrypoint", "cat", "init", "/data/backups/now.tar")
    project.stop("--volumes")
    into = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "sh", "init", "-c", "cat >/data/backups/now.tar")
    project.compose_bytes(*into, stdin=backup)
    project.compose("run", "--rm", "--no-deps", "init", "restore", "/data/backups/now.tar")
    project.start()
    expect("tokens come back with a backup", *ok(chat(project.first_port, token)))


def reconcile(project: Project) -> None:
    """The books add up."""
    told = project.compose("exec", "-T", "auth", "gateway", "reconcile")
    expect("the books add up", told.strip() == "0 differences", told)


def balance(port: int, token: str) -> dict[str, Any]:
    """What the holder of a token may know of its money; `held` is -1 while nobody answers."""
    status, text = ask(port, "/v1/token/balance", token)
    if status != 200:
        return {"held": -1, "amount_spent": 0.0}
    told: dict[str, Any] = json.loads(text)
    return told


def ok(answer: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
    """Whether an answer is a good one, and the answer."""
    return answer[0] == 200, answer


def until(what: str, holds: Callable[[], bool]) -> None:
    """Waits until something holds. Raises Refused when it never does."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        with suppress(KeyError):
            if holds():
                said(what)
                return
        time.sleep(0.1)
    raise Refused(f"not within {PATIENCE:.0f} s: {what}")


def expect(what: str, holds: bool, found: object) -> None:
    """Raises Refused, with what was found instead, where something does not hold."""
    if not holds:
        raise Refused(f"this does not hold: {what}; found {str(found)[:2000]}")
    said(what)


def said(what: str) -> None:
    """A line on standard output, at once."""
    print(f"compose-check: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
