"""`gateway identity revoke`: certificates that auth and admin refuse from then on, and what is known of them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from cyclopts import Parameter
from google.protobuf.timestamp_pb2 import Timestamp

from clients.cli.connection import admin_channel
from clients.cli.issued import Issued, issued_identities
from clients.cli.output import USAGE, Failure, Json, tell, tell_json, warn
from clients.cli.places import own_name
from gateway.errors import GatewayError
from gateway.process.settings import Settings, load_settings
from gateway.rpc.identity import OWN_NAMES, SERVERS, IdentityError, is_name, issue
from gateway.stubs.admin.v1 import identities_pb2 as pb
from gateway.stubs.admin.v1.identities_pb2_grpc import IdentityServiceStub

_TAKEN_OVER: Final = 3.0
"""Seconds in which a proxy finds a certificate that was issued anew and connects with it."""
_PATIENCE: Final = 1.0
_DEADLINE: Final = 15.0


def revoke(
    name: Annotated[str, Parameter(help="The service's name; or `proxy` or `operator`.")],
    /,
    *,
    keep_latest: Annotated[bool, Parameter(help="The certificate that was issued last stays good.")] = False,
    json: Json = False,
) -> None:
    """Have auth and admin refuse a service's certificates, at every call from now on.

    All that were issued until now are refused: stop or re-issue the service. To change a certificate without an outage, issue a
    new one, copy it to the service, and revoke the others with --keep-latest. For `proxy` and `operator` a new one is issued
    here first; copies of it on other machines must be made before the proxies there can go on.

    Example: gateway identity revoke billing
    """
    settings = load_settings(os.environ)
    if not is_name(name) or name in SERVERS:
        raise Failure(f"{name} is the name of no client: services have others, such as billing", code=USAGE, reason="usage")
    if name in OWN_NAMES:
        with admin_channel():  # before anything is issued
            until = _replaced(settings, name)
    else:
        latest = next((one for one in issued_identities(settings) if one.name == name), None)
        if latest is None:
            warn(f"no identity was issued to {name} here; `gateway identity list` has those that were")
        if keep_latest and latest is None:
            raise Failure(f"there is no certificate of {name} to keep", reason="not_found")
        until = _before(latest) if keep_latest and latest is not None else datetime.now(UTC)
    stamp = Timestamp()
    stamp.FromDatetime(until.replace(microsecond=0))
    with admin_channel() as channel:
        request = pb.RevokeIdentityRequest(name=name, issued_until=stamp)
        revoked = IdentityServiceStub(channel).RevokeIdentity(request, timeout=_DEADLINE).identity
    moment = revoked.issued_until.ToDatetime(UTC)
    if json:
        tell_json({"name": name, "issued_until": moment.isoformat().replace("+00:00", "Z")})
        return
    tell(f"revoked {name}: certificates that were issued up to {moment:%Y-%m-%d %H:%M:%S} UTC are refused")
    if name not in OWN_NAMES and not keep_latest:
        tell(f"a new one: {own_name()} identity create {name} --force --out FOLDER")


def known_revocations() -> Mapping[str, datetime]:
    """Of each name of which certificates are revoked: up to when those were issued. Empty, with a warning, without admin."""
    try:
        with admin_channel(_PATIENCE) as channel:
            listed = IdentityServiceStub(channel).ListRevokedIdentities(pb.ListRevokedIdentitiesRequest(), timeout=_DEADLINE)
    except (Failure, GatewayError) as fault:
        warn(f"whether identities are revoked is not known: {fault}")
        return {}
    return {one.name: one.issued_until.ToDatetime(UTC) for one in listed.identities}


def _replaced(settings: Settings, name: str) -> datetime:
    """Issues a new certificate to a service of the gateway's own; gives up to when those before it were issued."""
    folder = settings.data_dir / "pki" / name
    try:
        issue(settings.data_dir / "pki" / "ca", name, folder)
    except IdentityError as fault:
        raise Failure(str(fault), reason="certificates") from None
    warn(f"issued a new certificate in {folder}: where the {name} uses a copy, copy it there again")
    time.sleep(_TAKEN_OVER)
    return _before(Issued.read(folder / "cert.pem"))


def _before(latest: Issued) -> datetime:
    return latest.issued_at - timedelta(seconds=1)
