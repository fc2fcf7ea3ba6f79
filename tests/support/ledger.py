"""A real ledger in a temporary folder, with round prices."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from gateway.admission import Admission
from gateway.clock import Clock
from gateway.ids import uuid7
from gateway.price_rows import PriceRow
from gateway.pricing import Rate, Rates
from gateway.quota import Call
from gateway.storage.database import Database, connect
from gateway.storage.ledger import Ledger
from gateway.storage.migrate import migrate
from gateway.storage.prices import load_rows
from gateway.tokens import hash_secret
from gateway.usage import Outcome, Report, Source

KEY = b"k" * 32
SECRET = "a-token-for-tests"
DOLLAR = 1_000_000_000
MODEL = "thousandth"  # a thousandth of a dollar for each token read or written
TOKEN_PRICE = DOLLAR // 1000
PROXY = uuid7()


class MovedClock:
    """A clock that the test moves; it starts at the real time, because ids carry it."""

    def __init__(self) -> None:
        self.offset = timedelta(0)
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def monotonic(self) -> float:
        return self.seconds


def price(model: str, **rates: str) -> PriceRow:
    parts = {unit: Rate(Decimal(rate)) for unit, rate in rates.items()}
    return PriceRow("demo", model, f'{{"equals":"{model}"}}', Rates(parts), 100_000, 1_000)


def make_database(where: Path | str) -> Database:
    """A migrated database with one model's price, in a folder or at a URL."""
    db = connect(where if isinstance(where, str) else f"sqlite:///{where}/gateway.db", busy_timeout=5.0)
    migrate(db)
    rows = [price(MODEL, input="1000", output="1000"), price("cent", input="0", output="0", per_request="0.01")]
    load_rows(db, "file", rows, "2026-01-01T00:00:00.000000Z")
    return db


def add_token(db: Database, secret: str = SECRET, *, max_amount: str | None = "1", **columns: object) -> None:
    """A token as a person writes it."""
    values = {"name": "t", "token": secret, "max_amount": max_amount, **columns}
    with db.write():
        db.run(
            f"INSERT INTO client_tokens ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", tuple(values.values())
        )


def open_ledger(db: Database, clock: Clock | None = None, *, wall: Clock | None = None) -> Ledger:
    return Ledger(db, token_key=KEY, clock=clock or MovedClock(), wall=wall)


def admission(
    request_id: str | None = None, *, secret: str = SECRET, limit: int | None = 90, read: int = 10, **changes: object
) -> Admission:
    """A call that may cost `read + limit` thousandths of a dollar."""
    values: dict[str, object] = {
        "token_hash": hash_secret(KEY, secret).hex(),
        "call": Call(MODEL, input_token_ceiling=read, max_output_tokens=limit),
        "identity": "proxy",
        "request_id": uuid7() if request_id is None else request_id,
        "candidates": (("demo", MODEL),),
        "proxy_id": PROXY,
        "digest": f"{limit}-{read}",
    }
    return Admission(**(values | changes))  # type: ignore[arg-type] # a test's shorthand


def settled(request_id: str, read: int = 10, written: int = 20, **changes: object) -> Report:
    values: dict[str, object] = {
        "request_id": request_id,
        "outcome": Outcome.SETTLED,
        "identity": "proxy",
        "provider": "demo",
        "model": MODEL,
        "usage": {"input": read, "output": written},
        "source": Source.PROVIDER,
        "status": 200,
    }
    return Report(**(values | changes))  # type: ignore[arg-type] # a test's shorthand


def released(request_id: str, **changes: object) -> Report:
    return Report(request_id, Outcome.RELEASED, str(changes.pop("identity", "proxy")), error_code="not_sent", **changes)  # type: ignore[arg-type] # a test's shorthand


def token_row(db: Database, token_id: int = 1) -> dict[str, int]:
    columns = (
        "held_nanos",
        "total_spent_nanos",
        "period_spent_nanos",
        "open_calls",
        "request_count",
        "total_tokens",
        "enabled",
    )
    (row,) = db.query(f"SELECT {', '.join(columns)} FROM client_tokens WHERE id = ?", (token_id,))
    return dict(zip(columns, row, strict=True))


def request_row(db: Database, request_id: str) -> dict[str, object]:
    columns = ("state", "cost_nanos", "held_nanos", "usage_source", "status", "error_code", "input_tokens", "output_tokens")
    (row,) = db.query(f"SELECT {', '.join(columns)} FROM requests WHERE request_id = ?", (request_id,))
    return dict(zip(columns, row, strict=True))
