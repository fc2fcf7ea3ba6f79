"""An auth service that keeps its books in memory: it admits, holds and settles by the rules of the protocol.

A token's money is counted in tokens: a call holds its input ceiling and its output limit, and costs what its usage adds up to.
Run as a process (`python -m tests.fakes.auth_service FOLDER`) it prints its port and can be stopped by signals.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.errors import AlreadyExists, DatabaseUnavailable, NotFound, TokenUnknown
from gateway.rpc.identity import Identity
from gateway.rpc.status import code_of, to_status
from gateway.stubs.auth.v1 import auth_pb2 as pb
from gateway.stubs.auth.v1 import auth_pb2_grpc

TOKEN = "sk-fake-token"


@dataclass
class Token:
    """What a token may spend: None, without limit."""

    budget: int | None = None
    spent: int = 0
    held: int = 0


@dataclass
class Row:
    """A call in the books."""

    token: Token
    held: int
    arguments: bytes
    grant: pb.Grant
    report: bytes = b""
    answer: pb.RecordUsageResponse | None = None


@dataclass
class Ledger:
    """The books, which outlive the server."""

    tokens: dict[str, Token] = field(default_factory=lambda: {TOKEN: Token()})
    rows: dict[str, Row] = field(default_factory=dict)
    withdrawn: dict[str, bytes] = field(default_factory=dict)
    repeats: int = 0
    conflicts: int = 0

    def state(self, request_id: str) -> str:
        """`admitted`, `settled`, `released`, `withdrawn`, or empty."""
        if request_id in self.withdrawn:
            return "withdrawn"
        row = self.rows.get(request_id)
        return "" if row is None else row.answer.state if row.answer else "admitted"

    def settle(self, report: pb.RecordUsageRequest) -> pb.RecordUsageResponse:
        raw = report.SerializeToString(deterministic=True)
        row = self.rows.get(report.request_id)
        if row is None:
            if report.outcome != pb.OUTCOME_RELEASED:
                raise NotFound("this call was never admitted")
            if self.withdrawn.setdefault(report.request_id, raw) != raw:
                raise AlreadyExists("another report came first")
            return pb.RecordUsageResponse(state="released")
        if row.answer is not None:
            if row.report != raw:
                self.conflicts += 1
                raise AlreadyExists("another report came first")
            self.repeats += 1
            return row.answer
        cost = {pb.OUTCOME_RELEASED: 0, pb.OUTCOME_SETTLED_AT_HOLD: row.held}.get(
            report.outcome, sum(item.count for item in report.usage)
        )
        if report.source == pb.USAGE_SOURCE_ESTIMATED:
            cost = min(cost, row.held)
        row.token.held -= row.held
        row.token.spent += cost
        row.report = raw
        state = "released" if report.outcome == pb.OUTCOME_RELEASED else "settled"
        row.answer = pb.RecordUsageResponse(cost_nanos=cost, state=state)
        return row.answer

    def validate(self, request: pb.ValidateTokenRequest) -> pb.ValidateTokenResponse:
        token = self.tokens.get(request.token)
        if token is None:
            return _denied(pb.DENIAL_REASON_TOKEN_UNKNOWN, "This token is not known here.")
        if request.request_id in self.withdrawn:
            return _denied(pb.DENIAL_REASON_REQUEST_WITHDRAWN, "This call was withdrawn.")
        arguments = request.SerializeToString(deterministic=True)
        row = self.rows.get(request.request_id)
        if row is not None:
            if row.arguments != arguments or row.answer is not None:
                raise AlreadyExists("this request id was used before")
            return pb.ValidateTokenResponse(grant=row.grant)
        held = request.input_token_ceiling + request.max_output_tokens if request.request_id else 0
        if token.budget is not None and token.spent + token.held + held > token.budget:
            denial = _denied(pb.DENIAL_REASON_BUDGET_RESERVED, "The money that is left is held by calls in flight.")
            denial.denial.retry_delay.FromMilliseconds(1500)
            denial.denial.remaining_nanos = token.budget - token.spent
            denial.denial.held_nanos = token.held
            denial.denial.needed_nanos = held
            denial.denial.limit = "max_amount"
            denial.denial.token_id = 7
            denial.denial.resets_at.FromJsonString("2027-01-01T00:00:00Z")
            return denial
        grant = pb.Grant(token_id=7, held_nanos=held)
        if request.request_id:
            token.held += held
            self.rows[request.request_id] = Row(token, held, arguments, grant)
        return pb.ValidateTokenResponse(grant=grant)


class FakeAuthService(auth_pb2_grpc.AuthServiceServicer):
    """The servicer, and the faults that it can have.

    item_seconds: work for each item. flowing: while it is not set, nothing is done. swallow: what is done is not answered.
    too_large: what is done is answered with this status instead, as gRPC does with an answer above its limit.
    open_request_ids: what is told to stand as open for whoever beats. disowned: what those said that they do not know.
    database_away: nothing can be done, and says so for each item. forbidden: the caller's identity may do nothing.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.ledger = ledger or Ledger()
        self.item_seconds = 0.0
        self.flowing = threading.Event()
        self.flowing.set()
        self.swallow = False
        self.too_large: grpc.StatusCode | None = None
        self.open_request_ids: list[str] = []
        self.disowned: list[str] = []
        self.database_away = False
        self.forbidden = False
        self.batches: list[tuple[int, int]] = []
        self.sizes: list[int] = []
        self.beats = 0
        self.arrived = threading.Event()
        self._lock = threading.Lock()

    def BatchValidateTokens(self, request, context):
        self._enter(request, context)
        with self._lock:
            self.batches.append((len(request.settlements), len(request.validations)))
            self._work(len(request.settlements) + len(request.validations))
            settlements = [self._settlement(report) for report in request.settlements]
            response = pb.BatchValidateTokensResponse(
                settlements=settlements, validations=[self._validation(item) for item in request.validations]
            )
        return self._leave(response, context)

    def BatchRecordUsage(self, request, context):
        self._enter(request, context)
        with self._lock:
            if request.settlements:
                self.batches.append((len(request.settlements), 0))
            self._work(len(request.settlements))
            response = pb.BatchRecordUsageResponse(settlements=[self._settlement(report) for report in request.settlements])
        return self._leave(response, context)

    def GetTokenUsage(self, request, context):
        self._enter(request, context)
        with self._lock:
            token = self.ledger.tokens.get(request.token)
            if token is None:
                code, details, trailers = to_status(TokenUnknown("This token is not known here."))
                context.set_trailing_metadata(trailers)
                context.abort(code, details)
            return pb.GetTokenUsageResponse(token_id=7, amount_spent_nanos=token.spent, held_nanos=token.held)

    def ListModels(self, request, context):
        self._enter(request, context)
        if request.token not in self.ledger.tokens:
            return pb.ListModelsResponse(denial=_denied(pb.DENIAL_REASON_TOKEN_UNKNOWN, "not known").denial)
        return pb.ListModelsResponse(models=[pb.Model(name=name, provider="gateway") for name in sorted(request.names)])

    def Beat(self, request, context):
        self._enter(request, context)
        self.beats += 1
        self.disowned += request.disowned_request_ids
        return pb.BeatResponse(open_request_ids=self.open_request_ids)

    def _enter(self, request, context) -> None:
        self.sizes.append(request.ByteSize())
        self.arrived.set()
        self.flowing.wait()
        if self.forbidden:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "this identity may not call this")

    def _leave(self, response, context):
        if self.too_large is not None:
            context.abort(self.too_large, "CLIENT: Received message larger than max (4194305 vs. 4194304)")
        if self.swallow:
            while context.is_active():
                time.sleep(0.01)
        return response

    def _work(self, items: int) -> None:
        if self.item_seconds:
            time.sleep(self.item_seconds * items)

    def _settlement(self, report: pb.RecordUsageRequest) -> pb.SettlementResult:
        try:
            self._check_database()
            return pb.SettlementResult(response=self.ledger.settle(report))
        except (AlreadyExists, NotFound, DatabaseUnavailable) as error:
            return pb.SettlementResult(error=_item(error))

    def _validation(self, request: pb.ValidateTokenRequest) -> pb.ValidationResult:
        try:
            self._check_database()
            return pb.ValidationResult(response=self.ledger.validate(request))
        except (AlreadyExists, DatabaseUnavailable) as error:
            return pb.ValidationResult(error=_item(error))

    def _check_database(self) -> None:
        if self.database_away:
            raise DatabaseUnavailable("the database is away")


class FakeAuthServer:
    """The service on loopback with mutual TLS; it can go away and come back on the same port."""

    def __init__(self, service: FakeAuthService, identity: Identity, *, connection_age_ms: int | None = None) -> None:
        self.service = service
        self._options = [("grpc.max_connection_age_ms", connection_age_ms)] if connection_age_ms else []
        self.port = 0
        self._identity = identity
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0), *self._options])
        auth_pb2_grpc.add_AuthServiceServicer_to_server(self.service, server)
        self.health = health.HealthServicer(experimental_non_blocking=True)
        self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        mine = self._identity
        credentials = grpc.ssl_server_credentials([(mine.key, mine.cert)], mine.ca, require_client_auth=True)
        self.port = server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        server.start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            self.service.flowing.set()
            self._server.stop(0).wait()
            self._server = None


def _denied(reason: pb.DenialReason.ValueType, message: str) -> pb.ValidateTokenResponse:
    return pb.ValidateTokenResponse(denial=pb.Denial(reason=reason, message=message))


def _item(error) -> pb.ItemError:
    return pb.ItemError(code=code_of(error).value[0], reason=error.reason, message=error.message)


def main() -> None:
    service = FakeAuthService()
    service.item_seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    server = FakeAuthServer(service, Identity.load(Path(sys.argv[1])))
    server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
