"""`gateway admin`: the admin service itself, and `gateway admin passwd`."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

from cyclopts import App, Parameter

from clients.cli.__main__ import become
from clients.cli.output import USAGE, Failure, Json, tell, tell_json

app = App(name="admin", help="The admin service, and administrators' passwords.")


@app.default
def serve() -> None:
    """Run the admin service: tokens, administrators, the request log. Becomes `python -m services.admin`.

    Example: GATEWAY_ADMIN_LISTEN=0.0.0.0:50052 gateway admin
    """
    become("admin")


@app.command
def passwd(
    username: Annotated[str, Parameter(help="The administrator; made if there is none of this name.")] = "admin",
    *,
    password_stdin: Annotated[bool, Parameter(help="Read the password from standard input instead of asking.")] = False,
    json: Json = False,
) -> None:
    """Set an administrator's password and end all of that administrator's sessions.

    Example: gateway admin passwd admin
    """
    from clients.cli.connection import DEADLINE, admin_channel  # noqa: PLC0415 - `gateway admin` starts without gRPC
    from gateway.stubs.admin.v1.sessions_pb2 import SetPasswordRequest  # noqa: PLC0415 - same
    from gateway.stubs.admin.v1.sessions_pb2_grpc import SessionServiceStub  # noqa: PLC0415 - same

    request = SetPasswordRequest(username=username, new_password=_password(from_stdin=password_stdin))
    with admin_channel() as channel:
        SessionServiceStub(channel).SetPassword(request, timeout=DEADLINE)
    if json:
        tell_json({"username": username, "password_set": True})
    else:
        tell(f"the password of {username} is set")


def _password(*, from_stdin: bool) -> str:
    """A new password: one line of standard input, or asked for twice without echo."""
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif not sys.stdin.isatty():
        raise Failure("there is no terminal to ask on: use --password-stdin", code=USAGE, reason="usage")
    else:
        password = getpass.getpass("New password: ")
        if getpass.getpass("Once more: ") != password:
            raise Failure("the two are not the same; nothing was changed", code=USAGE, reason="usage")
    if not password:
        raise Failure("a password is not empty; nothing was changed", code=USAGE, reason="usage")
    return password
