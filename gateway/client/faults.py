"""What a failed RPC means to an internal service, and what is to be done about it."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from gateway.client.credentials import Credentials
from gateway.errors import AuthUnavailable, DatabaseUnavailable, GatewayError, IdentityRevoked, InvalidArgument, Overloaded
from gateway.rpc.status import from_status

PAUSE: Final = 0.02
"""Seconds before the second try; doubled for each further one, up to `MOST_PAUSE`."""
MOST_PAUSE: Final = 0.2
MOST_PAUSE_BEHIND: Final = 1.0
"""The same for what is sent in the background."""

_LONGEST: Final = 86_400.0  # seconds; with an infinite time gRPC hears no answer
_FIRST_SHARE: Final = 0.6  # of the caller's time for the first try, so that another replica is asked when one hangs

# gRPC says this when no connection stands: the call has not left this process.
_NOT_SENT: Final = ("all backends failing", "failed to connect to all addresses", "DNS resolution failed", "name resolution")
# What gRPC says of a connection that cannot be made, and what to do about it.
_CAUSES: Final = {
    "Hostname Verification": "what answers there is of this installation, but it is not auth; look at the address",
    "CERTIFICATE_VERIFY_FAILED": (
        "its certificate was not issued by {where}/ca.pem: the address or the identity is that of another installation;"
        " issue the identity again with `gateway identity create`"
    ),
    "WRONG_VERSION_NUMBER": "what answers there speaks no TLS; look at the address",
    "security handshaker": "{where}/key.pem is not the key of {where}/cert.pem; issue the identity again",
    "Socket closed": (
        "it closed the connection during the handshake, as it does when it does not know the certificate in {where};"
        " if that lasts, issue the identity again with `gateway identity create`"
    ),
    "Connection reset": "it closed the connection; if that lasts, issue the identity in {where} again",
    "Connection refused": "nothing listens there",
}
_PASSING: Final = (AuthUnavailable, DatabaseUnavailable, Overloaded)


class Fault(Exception):
    """A try that failed, and whether auth may have acted on it nevertheless."""

    def __init__(self, error: GatewayError, *, passing: bool, sent: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.passing = passing
        """Whether another try makes sense."""
        self.sent = sent

    @property
    def may_pass(self) -> bool:
        """Whether a report is worth keeping: also that of a revoked identity, which may be issued anew before long."""
        return self.passing or isinstance(self.error, IdentityRevoked)


def seconds(timeout: float) -> float:
    """A timeout with which gRPC can do. Raises InvalidArgument for what is no number."""
    if math.isnan(timeout):
        raise InvalidArgument("the timeout is no number of seconds")
    return min(timeout, _LONGEST)


class Tries:
    """The tries of one question: how long they may go on, and whether one of them may have been acted on unheard.

    timeout: seconds for all of them.
    """

    def __init__(self, timeout: float) -> None:
        timeout = seconds(timeout)
        self._until = time.monotonic() + timeout
        self._most = timeout * _FIRST_SHARE
        self._pause = PAUSE
        self.lost = False

    def left(self) -> float:
        """Seconds for the next try."""
        return max(0.001, min(self._until - time.monotonic(), self._most))

    def pause_after(self, fault: Fault) -> float | None:
        """Seconds to wait before the next try; None: there is none."""
        self.lost = self.lost or fault.sent
        if not fault.passing or self._until - time.monotonic() <= self._pause:
            return None
        pause, self._pause = self._pause, min(2 * self._pause, MOST_PAUSE)
        return pause


class Faults:
    """Reads faults for one connection.

    address: where auth should be. credentials: what was shown to it; None: no connection, as in tests of the users' own.
    """

    def __init__(self, address: str, credentials: Credentials | None) -> None:
        self._address = address
        self._credentials = credentials

    def read(self, error: Exception) -> Fault:
        """What a failed try means. Raises the error itself when it is neither gRPC's nor ours."""
        if isinstance(error, GatewayError):
            return Fault(error, passing=isinstance(error, _PASSING), sent=False)
        if not isinstance(error, grpc.RpcError):
            raise error
        told = from_status(error)
        call: Any = error
        details = str(call.details() or "") if hasattr(call, "details") else ""
        if isinstance(told, AuthUnavailable):
            unsent = any(mark in details for mark in _NOT_SENT)
            message = f"auth at {self._address} cannot be reached: {self._why(details)}" if unsent else self._silent(error)
            return Fault(AuthUnavailable(message, retry_after=1.0), passing=True, sent=not unsent)
        passing = isinstance(told, _PASSING)
        if passing:
            told = AuthUnavailable(told.message, retry_after=told.retry_after or 1.0, metadata=told.metadata)
        return Fault(told, passing=passing, sent=False)

    def _silent(self, error: grpc.RpcError) -> str:
        late = isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return f"auth at {self._address} {'did not answer in time' if late else 'broke the connection off'}"

    def _why(self, details: str) -> str:
        """Why a connection cannot be made, and what to do about it, as far as gRPC lets one tell."""
        mine = self._credentials
        where = mine.directory if mine is not None else ""
        if mine is not None and mine.expires_at < datetime.now(UTC):
            command = f"`gateway identity create {mine.name} --force`"
            return f"the certificate in {where} expired on {mine.expires_at:%Y-%m-%d}; {command} makes a new one"
        text = next((text for mark, text in _CAUSES.items() if mark in details), None)
        return text.format(where=where) if text is not None else details.rpartition("last error: ")[2][:300]
