"""What makes a database this installation's: its token key, and the prices and providers of its configuration."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.clock import Clock, to_text
from gateway.errors import FailedPrecondition
from gateway.price_rows import PriceRow, ProviderRow
from gateway.storage.builtin_prices import builtin_rows
from gateway.storage.database import Database
from gateway.storage.prices import load_providers, load_rows
from gateway.tokens import key_fingerprint

_FINGERPRINT = "token_key_fingerprint"


def claim_token_key(db: Database, key: bytes) -> None:
    """Notes the token key's fingerprint in a database that has none yet.

    Raises FailedPrecondition where the database was made with another key: its tokens would all be unknown.
    """
    fingerprint = key_fingerprint(key)
    with db.write():
        db.run("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO NOTHING", (_FINGERPRINT, fingerprint))
        rows = db.query("SELECT value FROM meta WHERE key = ?", (_FINGERPRINT,))
    if rows[0][0] != fingerprint:
        raise FailedPrecondition(
            "the database was made with another token key, and with this one every token would be unknown;"
            " restore the key that belongs to it (GATEWAY_TOKEN_KEY_FILE)"
        )


def has_tokens(db: Database) -> bool:
    """Whether any client token is stored under the token key, so that the key must not be made anew."""
    return bool(db.query("SELECT 1 FROM client_tokens WHERE token_hash IS NOT NULL LIMIT 1"))


def load_configuration(db: Database, prices: Sequence[PriceRow], providers: Sequence[ProviderRow], clock: Clock) -> None:
    """Makes the configuration's prices and providers hold from the next admission on."""
    load_rows(db, "file", prices, to_text(clock.now()))
    load_providers(db, providers)


def load_builtin_prices(db: Database, clock: Clock) -> int:
    """Brings the built-in prices up to those of this release; gives how many rows changed. Takes about a second and 100 MB."""
    return load_rows(db, "builtin", builtin_rows(), to_text(clock.now()))
