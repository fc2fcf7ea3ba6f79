"""`gateway identity …`: certificates for internal services, issued by this installation's authority."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from clients.cli.issued import Issued, issued_identities, remember
from clients.cli.output import USAGE, Failure, Json, fields, table, tell, tell_json, warn
from clients.cli.places import own_name
from clients.cli.revoking import known_revocations, revoke
from gateway.process.settings import Settings, load_settings
from gateway.rpc.identity import LEAF_DAYS, OWN_NAMES, RECORD_UNADMITTED, IdentityError, issue
from gateway.stubs.auth.v1 import auth_pb2

app = App(name="identity", help="Make certificates for internal services, see which were made, and revoke them.")
app.command(revoke)

DEFAULT_METHODS: Final = (
    "ValidateToken",
    "RecordUsage",
    "RenewLease",
    "GetTokenUsage",
    "ListModels",
    "BatchValidateTokens",
    "BatchRecordUsage",
)
"""What an internal service may call unless it is told otherwise: all that makes, settles and reads calls of its own."""

_FILES: Final = ("cert.pem", "key.pem", "ca.pem")
_OF_THE_PROXY: Final = frozenset({"Beat", "ReleaseUnsent"})
_MOST_DAYS: Final = 36_500


@app.command
def create(
    name: Annotated[str, Parameter(help="The service's name: lower-case letters, digits and hyphens.")],
    /,
    *,
    out: Annotated[str | None, Parameter(help="The folder for its three files. Without: <data>/pki/<name>.")] = None,
    tar: Annotated[bool, Parameter(help="Write the three files as a tar to standard output, and keep none here.")] = False,
    allow_method: Annotated[
        list[str] | None,
        Parameter(help="A method of auth that it may call; may be repeated. Without: all that a service needs.", alias="--rpc"),
    ] = None,
    record_unadmitted: Annotated[bool, Parameter(help="It may report usage of calls that were never admitted.")] = False,
    days: Annotated[int, Parameter(help="For how long it is good.")] = LEAF_DAYS,
    force: Annotated[bool, Parameter(help="Replace the files of that folder.")] = False,
    json: Json = False,
) -> None:
    """Issue a certificate to an internal service, and say what to copy where.

    Runs where the authority's key is. With --force and no method named, the methods and rights issued last are kept. An
    identity is good until its last day, and the old one beside the new: `gateway identity revoke` ends it earlier.

    Example: gateway identity create billing --out billing-identity
    """
    settings = load_settings(os.environ)
    before = _issued(settings, name) if force and not allow_method else None
    methods = _methods(allow_method) or (before.methods if before is not None else DEFAULT_METHODS)
    rights = before.rights if before is not None and not record_unadmitted else (RECORD_UNADMITTED,) * record_unadmitted
    if name in OWN_NAMES or name in {"ca", "issued"}:
        raise Failure(f"{name} is a name of the gateway's own: choose another one", code=USAGE, reason="usage")
    if tar and (out is not None or json):
        raise Failure("--tar goes without --out and --json", code=USAGE, reason="usage")
    if not 1 <= days <= _MOST_DAYS:
        raise Failure(f"--days is 1 to {_MOST_DAYS}", code=USAGE, reason="usage")
    os.umask(0o077)
    folder = settings.data_dir / "pki" / name if out is None else Path(out)
    if not tar and not force and any((folder / file).exists() for file in _FILES):
        raise Failure(f"{folder} holds an identity already: --force replaces it", reason="exists")
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / name
        target = draft if tar else folder
        try:
            issue(
                settings.data_dir / "pki" / "ca",
                name,
                target,
                rpcs=methods,
                rights=rights,
                days=days,
            )
        except IdentityError as fault:
            raise Failure(str(fault), reason="certificates") from None
        made = Issued.read(target / "cert.pem")
        if tar:
            _write_tar(draft)
    try:
        remember(settings, name, made.pem)
    except OSError as fault:
        warn(f"the identity is good, but `gateway identity list` will not know it: {fault.filename}: {fault.strerror}")
    if tar:
        return
    if json:
        tell_json({**_as_json(made, {}), "directory": str(folder.resolve())})
    else:
        _tell_made(made, folder, settings)


@app.command(name="list")
def list_(*, json: Json = False) -> None:
    """List the identities that were issued to internal services, with their last days.

    Example: gateway identity list
    """
    found = issued_identities(load_settings(os.environ))
    revoked = known_revocations() if found else {}
    if json:
        tell_json({"identities": [_as_json(one, revoked) for one in found]})
        return
    rows = (
        (one.name, f"{one.expires_at:%Y-%m-%d}", _state(one, revoked), ", ".join(one.methods), _rights(one)) for one in found
    )
    table(("name", "expires", "state", "methods", "rights"), rows)


@app.command
def show(
    name: Annotated[str, Parameter(help="The service's name.")],
    /,
    *,
    json: Json = False,
) -> None:
    """Show the identity that was issued last to an internal service.

    Example: gateway identity show billing
    """
    found = _issued(load_settings(os.environ), name)
    if found is None:
        raise Failure(f"no identity was issued to {name}: `gateway identity list` has those that were", reason="not_found")
    revoked = known_revocations()
    if json:
        tell_json(_as_json(found, revoked))
        return
    fields(
        {
            "name": found.name,
            "expires": f"{found.expires_at:%Y-%m-%d} ({_state(found, revoked)})",
            "methods": ", ".join(found.methods),
            "rights": _rights(found),
            "serial": f"{found.serial:x}",
        }
    )


def known_methods() -> tuple[str, ...]:
    """The methods of auth that a certificate can name."""
    methods = auth_pb2.DESCRIPTOR.services_by_name["AuthService"].methods
    return tuple(method.name for method in methods if method.name not in _OF_THE_PROXY)


def _methods(given: Iterable[str] | None) -> tuple[str, ...]:
    """The methods to be named. Raises Failure for one that auth does not have, or has for the proxy alone."""
    wanted = tuple(dict.fromkeys(part.strip() for text in given or () for part in text.split(",") if part.strip()))
    if unknown := [method for method in wanted if method not in known_methods()]:
        raise Failure(f"{unknown[0]} is none of {', '.join(known_methods())}", code=USAGE, reason="usage")
    return wanted


def _issued(settings: Settings, name: str) -> Issued | None:
    """What was issued last to a service."""
    return next((one for one in issued_identities(settings) if one.name == name), None)


def _write_tar(folder: Path) -> None:
    """Writes a folder with its files to standard output."""
    if sys.stdout.isatty():
        raise Failure("--tar writes a tar: redirect it, such as `| tar x`", code=USAGE, reason="usage")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for file in _FILES:
            member = archive.gettarinfo(folder / file, f"{folder.name}/{file}")
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            with (folder / file).open("rb") as source:
                archive.addfile(member, source)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        shutil.copyfileobj(io.BytesIO(content.getvalue()), out)


def _tell_made(made: Issued, folder: Path, settings: Settings) -> None:
    address = settings.auth_address
    tell(f"made the identity {made.name} in {folder}, good until {made.expires_at:%Y-%m-%d}")
    tell(f"it may call {', '.join(made.methods)}" + (f" and has the right {_rights(made)}" if made.rights else ""))
    tell(f"copy {', '.join(_FILES)} to where the service runs, readable by it alone, and set there")
    tell("  GATEWAY_IDENTITY_DIR=<the folder with the copies>")
    tell(f"  GATEWAY_AUTH_ADDRESS={address}   # or where that machine reaches auth")
    again = f"{own_name()} identity create {made.name} --force --out {folder}"
    tell(f"before {made.expires_at:%Y-%m-%d}: {again}, and copy the files again")


def _as_json(one: Issued, revoked: Mapping[str, datetime]) -> dict[str, Any]:
    return {
        "name": one.name,
        "expires_at": one.expires_at.isoformat().replace("+00:00", "Z"),
        "state": _state(one, revoked),
        "methods": list(one.methods),
        "rights": list(one.rights),
        "serial": f"{one.serial:x}",
    }


def _rights(one: Issued) -> str:
    return ", ".join(one.rights)


def _state(one: Issued, revoked: Mapping[str, datetime]) -> str:
    if one.name in revoked and one.issued_at <= revoked[one.name]:
        return "revoked"
    return "expired" if one.expires_at < datetime.now(UTC) else "good"
