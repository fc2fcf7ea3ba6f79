"""`python -m services.auth`: the auth service as a process."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from functools import partial

from gateway.clock import Clock, SystemClock
from gateway.errors import GatewayError
from gateway.process import logs, token_key
from gateway.process.clocks import steady_clock
from gateway.process.lifecycle import serve_until_signal, unless_stopped
from gateway.process.memory import give_memory_back
from gateway.process.metrics import DatabaseMetrics, service_registry
from gateway.process.probes import start_probes
from gateway.process.settings import Settings, SettingsError, load_settings
from gateway.process.settings_rows import price_rows, provider_rows
from gateway.process.stderr import cannot_start, catch_stray, tell_waiting
from gateway.process.tasks import looking
from gateway.rpc.identity import Identity, IdentityError
from gateway.rpc.renewal import Renewal
from gateway.rpc.server import BindError, bind
from gateway.storage import waiting
from gateway.storage.database import Database
from gateway.storage.installation import claim_token_key, load_configuration
from gateway.storage.ledger import Ledger
from gateway.storage.revoked_identities import READ_EVERY, RevokedIdentities
from services.auth.app import make_server
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics
from services.auth.sweeper import Sweeper


def main() -> None:
    """Serves until a signal; exits with one line on standard error where it cannot start."""
    give_memory_back()
    try:
        settings = load_settings(os.environ)
        logs.configure(settings.log_level, settings.log_format, "auth")
        catch_stray()
        directory = settings.identity_dir_for("auth")
        identity = Identity.load(directory)
        renewal = Renewal(directory, identity)
        key = token_key.read(settings.token_key_file)
        wall = SystemClock()
        registry = service_registry("auth", certificate_ends=lambda: renewal.expires_at)
        metrics, database = AuthMetrics(registry), DatabaseMetrics(registry)
        clock = steady_clock(wall, registry)
        denials = DenialLog(clock)
        with (
            closing(unless_stopped(partial(waiting.for_database, settings.database_url, tell=tell_waiting))) as db,
            closing(Ledger(db, token_key=key, clock=clock, wall=wall)) as ledger,
            Sweeper(
                db=db,
                ledger=ledger,
                denials=denials,
                clock=clock,
                metrics=metrics,
                retention_days=settings.retention_days,
            ),
        ):
            revoked = RevokedIdentities(db)
            first_steps = partial(_prepare, db, key, settings, clock, revoked)
            unless_stopped(partial(waiting.while_away, first_steps, tell=tell_waiting))
            server = make_server(
                db=db,
                ledger=ledger,
                denials=denials,
                identity=identity,
                revoked=revoked.until,
                token_key=key,
                clock=wall,
                registry=registry,
                metrics=metrics,
            )
            bind(server, settings.auth_listen, identity, renewal=renewal)
            with (
                looking(revoked.look, every=READ_EVERY, name="revoked-identities"),
                start_probes(settings.auth_metrics_address, lambda: server.serving, registry=registry),
            ):
                serve_until_signal(
                    server,
                    lame_duck=settings.lame_duck,
                    drain=settings.drain,
                    ready=lambda: database.watched(ledger.is_working, lambda: db.trouble),
                )
    except (SettingsError, IdentityError, BindError, GatewayError, OSError) as error:
        sys.exit(cannot_start("auth", error))


def _prepare(db: Database, key: bytes, settings: Settings, clock: Clock, revoked: RevokedIdentities) -> None:
    """What a database needs before calls are decided by it. Harmless to repeat."""
    claim_token_key(db, key)
    load_configuration(db, price_rows(settings), provider_rows(settings), clock)
    revoked.read()


if __name__ == "__main__":
    main()
