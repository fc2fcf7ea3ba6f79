"""One request and what is known of it: for the headers of its answer and the one line in the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gateway.money import to_units
from services.proxy.rate_headers import of_limits
from services.proxy.ticket import Ticket


def readable(text: str) -> str:
    """A header's text without the bytes in it that are not UTF-8, so that it can be sent on and logged."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


@dataclass(slots=True)
class Exchange:
    """A request at the edge."""

    request: web.BaseRequest
    request_id: str
    """The id of the answer, of the log line, and of the ledger's row where there is one."""
    arrived: float
    """The loop's time."""
    address: str
    """The caller's network address; empty when not known."""
    scheme: str = ""
    """What the caller used, `http` or `https`, where proxies are trusted; empty: it is the connection's own."""
    cors: Mapping[str, str] | None = None
    """What a browser is told about other origins; None: nothing."""
    closing: Callable[[], bool] = lambda: False
    """Whether the connection is to end with this answer: to be asked when its head is sent."""
    ticket: Ticket | None = None
    """The admitted call; None: there is none."""
    model: str = ""
    """The model that was asked for; empty: none."""
    cost_nanos: int | None = None
    """What the call cost; None: not known yet."""

    def headers(self) -> dict[str, str]:
        """The headers of our own that the answer carries."""
        headers = {"x-request-id": self.request_id, "request-id": self.request_id}
        ticket = self.ticket
        if ticket is not None and (rate_limits := ticket.grant.rate_limits):
            headers |= of_limits(rate_limits, time.time())
        if ticket is not None and ticket.target is not None:
            headers["x-gateway-provider"] = ticket.target.provider.name
            headers["x-gateway-attempts"] = str(len(ticket.attempts))
            limit = ticket.limit
            if limit is not None and limit != ticket.call.limit:
                headers["x-gateway-max-output-tokens"] = str(limit)
        if self.cost_nanos is not None:
            headers["x-gateway-cost"] = f"{to_units(self.cost_nanos):f}"
        if self.cors is not None:
            headers |= self.cors
        return headers

    def log_fields(self, status: int, reason: str, now: float) -> dict[str, Any]:
        """What the log says of it: no text of a prompt, no key."""
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self.request.method[:20],
            "path": readable(self.request.raw_path.partition("?")[0][:200]),
            "status": status,
            "duration_ms": round((now - self.arrived) * 1000, 1),
            "client_ip": self.address,
        }
        if reason:
            fields["reason"] = reason
        if self.model:
            fields["model"] = self.model
        ticket = self.ticket
        if ticket is not None:
            fields["token_id"] = ticket.grant.token_id
            fields["stream"] = ticket.call.stream
            if ticket.target is not None:
                fields["provider"] = ticket.target.provider.name
            if ticket.ttft_ms:
                fields["ttft_ms"] = ticket.ttft_ms
            if len(ticket.attempts) > 1:
                fields["attempts"] = len(ticket.attempts)
            if ticket.error_code:
                fields["error_code"] = ticket.error_code
        return fields
