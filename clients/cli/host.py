"""What the host commands do with the database, and two of them: `gateway migrate` and `gateway reconcile`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from clients.cli.output import FAULT, OK, Json, tell, tell_json
from gateway.clock import SystemClock
from gateway.errors import FailedPrecondition
from gateway.process import token_key
from gateway.process.settings import Settings, load_settings
from gateway.process.settings_rows import price_rows, provider_rows
from gateway.storage import installation
from gateway.storage.database import Database, connect
from gateway.storage.migrate import migrate as apply_migrations
from gateway.storage.migrate import require_current
from gateway.storage.models import Meta
from gateway.storage.reconcile import reconcile as differences_of

PATIENCE = 10.0  # seconds that a host command waits for another writer

_BUILTIN_PRICES = "builtin_prices_of"  # in `meta`: the releases that the built-in prices were last loaded from


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database, closed when the block ends. Raises a GatewayError where it cannot be opened."""
    db = connect(settings.database_url, busy_timeout=PATIENCE)
    try:
        yield db
    finally:
        db.close()


def bring_up_to_date(db: Database, settings: Settings, *, always_load_prices: bool = False) -> list[str]:
    """Applies migrations, then loads the prices and providers of the release and of gateway.toml. Gives what was applied.

    always_load_prices: also where the built-in prices of this release were loaded before; that takes a second and 100 MB.
    """
    applied = apply_migrations(db)
    clock = SystemClock()
    release = f"gateway-zero {version('gateway-zero')}, genai-prices {version('genai-prices')}"
    known = db.query("SELECT value FROM meta WHERE key = ?", (_BUILTIN_PRICES,))
    if always_load_prices or not known or known[0][0] != release:
        installation.load_builtin_prices(db, clock)
        with db.write():
            Meta.insert(key=_BUILTIN_PRICES, value=release).on_conflict(
                conflict_target=[Meta.key], update={Meta.value: release}
            ).execute(db)
    installation.load_configuration(db, price_rows(settings), provider_rows(settings), clock)
    return applied


def settle_token_key(db: Database, path: Path) -> tuple[bytes, bool]:
    """The token key, and whether it was made just now.

    Raises FailedPrecondition instead of making one where tokens exist, and where the database belongs to another one.
    """
    missing = not path.exists()
    if missing:
        if installation.has_tokens(db):
            raise FailedPrecondition(
                f"there is no token key at {path}, and there are tokens that no other key opens: restore it from a backup"
            )
        token_key.make(path)
    key = token_key.read(path)
    installation.claim_token_key(db, key)
    return key, missing


def migrate(*, json: Json = False) -> None:
    """Bring the database to this release's schema, and load its prices and those of gateway.toml."""
    settings = load_settings(os.environ)
    os.umask(0o077)
    with opened(settings) as db:
        applied = bring_up_to_date(db, settings, always_load_prices=True)
    if json:
        tell_json({"applied": applied})
    else:
        tell(f"applied {', '.join(applied)}" if applied else "the database is up to date")


def reconcile(*, json: Json = False) -> int:
    """Prove that every token's books add up: spent, held, counted. Exit code 1, with what differs, when they do not."""
    settings = load_settings(os.environ)
    with opened(settings) as db:
        require_current(db)
        found = differences_of(db)
    if json:
        tell_json({"differences": [asdict(difference) for difference in found]})
    else:
        for difference in found:
            tell(f"{difference.subject}: {difference.figure} is {difference.stored}, the rows say {difference.proven}")
        tell(f"{len(found)} differences")
    return FAULT if found else OK
