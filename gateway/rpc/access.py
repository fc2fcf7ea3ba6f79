"""Who may call what: the types of the tables that each service keeps, and the check that runs before its servicer.

The rules themselves stand in `services/auth/access.py` and `services/admin/access.py`. What no row allows is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

import grpc
from google.protobuf import descriptor_pool

from gateway.errors import IdentityRevoked, PermissionDenied, Unauthenticated
from gateway.rpc.identity import OWN_NAMES, RECORD_UNADMITTED, Caller, caller_of, issued_at_of


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call one method. A call passes if any one of these lets it."""

    identities: frozenset[str] = frozenset()
    """Names in certificates that may call it as they are, without a session."""
    named: bool = False
    """An internal service may call it whose certificate names the method."""
    roles: frozenset[str] = frozenset()
    """Roles of a live session, brought in the metadata by whatever identity, that may call it."""
    anyone: bool = False
    """Every identity of the installation may call it, without a session."""
    cut_on_stop: bool = False
    """A stream that its reader takes up again elsewhere: it is ended, not waited for, when the server stops."""


AccessTable = Mapping[str, Rule]
"""Full method name, such as `/gateway.auth.v1.AuthService/ValidateToken`, to its rule."""


class Session(Protocol):
    """What the check needs to know of an administrator's session."""

    @property
    def username(self) -> str:
        """Whose it is."""
        ...

    @property
    def role(self) -> str:
        """What it may do."""
        ...


CheckSession = Callable[[str, Mapping[str, str]], Session]
"""The live session of a secret, given with the call's metadata; raises Unauthenticated when there is none."""


@dataclass(frozen=True, slots=True)
class Principal:
    """In whose name a call is made."""

    actor: str
    """As the audit names it: `admin:<name>`, `operator`, or `service:<identity>`."""
    caller: Caller
    """The identity that made the connection."""
    session: Session | None = None
    """The session that opened the method; None where the identity did."""


_current: ContextVar[Principal] = ContextVar("principal")


def principal() -> Principal:
    """In whose name the call is made that runs here. Raises LookupError outside a call."""
    return _current.get()


@contextmanager
def acting_as(who: Principal) -> Iterator[Principal]:
    """Runs a block in someone's name, for servicers that are called without a server."""
    before = _current.set(who)
    try:
        yield who
    finally:
        _current.reset(before)


IssuedUntil = Callable[[str], datetime | None]
"""Of an identity's name: up to when its certificates were issued that are revoked; None: all are good."""


def none_revoked(_: str) -> None:
    """For servers without a list of what is revoked."""


class AccessError(Exception):
    """A table of rights and the services do not match: the server must not start."""


def methods_of(service: str) -> list[str]:
    """The full names of a service's methods, from its descriptor. Raises AccessError for a service that nobody described."""
    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        raise AccessError(f"no service is called {service}") from None
    return [f"/{service}/{method.name}" for method in descriptor.methods]


def check_rows(services: Iterable[str], access: AccessTable) -> None:
    """Raises AccessError unless each method of the services has its row, and each row its method."""
    methods = [method for service in services for method in methods_of(service)]
    if missing := [method for method in methods if method not in access]:
        raise AccessError(f"the table of rights has no row for {', '.join(missing)}")
    if left := sorted(set(access) - set(methods)):
        raise AccessError(f"the table of rights has rows for what is no method here: {', '.join(left)}")


class Guard:
    """Applies a table to calls."""

    def __init__(self, check_session: CheckSession | None = None, revoked: IssuedUntil = none_revoked) -> None:
        self._check_session = check_session
        self._revoked = revoked

    def enter(self, method: str, rule: Rule, context: grpc.ServicerContext) -> Principal:
        """Who calls, as `principal()` gives it from here on.

        Raises Unauthenticated without an identity or a live session, IdentityRevoked for one that is no longer valid,
        PermissionDenied for one that may not call the method.
        """
        caller = caller_of(context)
        name = caller.name
        if not name:
            raise Unauthenticated("this call needs a client certificate of this installation")
        self._check_revoked(name, context)
        if name in rule.identities or rule.anyone or (rule.named and method.rpartition("/")[2] in caller.rpcs):
            who = _principal_of(caller)
        elif rule.roles and self._check_session is not None:
            who = self._by_session(method, rule, caller, context, self._check_session)
        else:
            raise PermissionDenied(_not_allowed(caller, method, rule))
        _current.set(who)
        return who

    def _check_revoked(self, name: str, context: grpc.ServicerContext) -> None:
        until = self._revoked(name)
        if until is None:
            return
        issued = issued_at_of(context)
        if issued is None or issued <= until:
            raise IdentityRevoked(f"the certificate of {name} is revoked: {_in_its_place(name)}")

    def _by_session(
        self, method: str, rule: Rule, caller: Caller, context: grpc.ServicerContext, check: CheckSession
    ) -> Principal:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        session = check(_bearer(context), metadata)
        if session.role not in rule.roles:
            raise PermissionDenied(
                f"a session of the role {session.role} may not call {method}", metadata={"role": session.role}
            )
        return Principal(f"admin:{session.username}", caller, session)


def _in_its_place(name: str) -> str:
    if name in OWN_NAMES:
        return f"use the one in the folder pki/{name} of the gateway's data; `gateway identity revoke {name}` issues it"
    return f"issue a new one with `gateway identity create {name} --force --out FOLDER`"


def _not_allowed(caller: Caller, method: str, rule: Rule) -> str:
    """Why an identity is refused, and what gives it the right if anything does."""
    name = method.rpartition("/")[2]
    if not rule.named or caller.name in OWN_NAMES:
        return f"the identity {caller.name} may not call {method}"
    wanted = " ".join(f"--allow-method {rpc}" for rpc in sorted({*caller.rpcs, name}))
    rights = " --record-unadmitted" if RECORD_UNADMITTED in caller.rights else ""
    return (
        f"the identity {caller.name} may not call {name}: its certificate does not name it."
        f" Issue it anew with `gateway identity create {caller.name} --force --out FOLDER {wanted}{rights}`"
    )


_PRINCIPALS: Final[dict[Caller, Principal]] = {}


def _principal_of(caller: Caller) -> Principal:
    """The principal of an identity; one object each, as the hot path asks for it at every call."""
    known = _PRINCIPALS.get(caller)
    if known is None:
        actor = "operator" if caller.name == "operator" else f"service:{caller.name}"
        known = _PRINCIPALS[caller] = Principal(actor, caller)
    return known


def _bearer(context: grpc.ServicerContext) -> str:
    """The session's secret in the metadata."""
    values = {value for key, value in context.invocation_metadata() or () if key == "authorization"}
    if len(values) > 1:
        raise Unauthenticated("two authorization entries differ: send one")
    value = values.pop() if values else ""
    scheme, _, secret = (value if isinstance(value, str) else "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthenticated("log in first: this call needs `authorization: Bearer <session token>`")
    return secret.strip()
