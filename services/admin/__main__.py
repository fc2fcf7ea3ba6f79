"""`python -m services.admin`: the admin service as a process."""

from __future__ import annotations

import os
import sys
from contextlib import closing, suppress
from functools import partial

from gateway.clock import SystemClock
from gateway.errors import DatabaseUnavailable, GatewayError
from gateway.process import logs, token_key
from gateway.process.clocks import steady_clock
from gateway.process.lifecycle import serve_until_signal, unless_stopped
from gateway.process.memory import give_memory_back
from gateway.process.metrics import DatabaseMetrics, service_registry
from gateway.process.probes import start_probes
from gateway.process.settings import SettingsError, load_settings
from gateway.process.stderr import cannot_start, catch_stray, tell_waiting
from gateway.process.tasks import looking
from gateway.rpc.identity import Identity, IdentityError
from gateway.rpc.renewal import Renewal
from gateway.rpc.server import BindError, bind
from gateway.storage import waiting
from gateway.storage.installation import claim_token_key
from gateway.storage.revoked_identities import READ_EVERY, RevokedIdentities
from gateway.storage.sessions import SessionStore
from services.admin.app import make_server
from services.admin.metrics import AdminMetrics, SessionCount

_BUSY_TIMEOUT = 1.5  # seconds; auth's writer comes first, and people wait longer than calls do

_CACHE_KIB = 2_000  # a thread: some thirty of them read the log now and then, and none needs much of it twice


def main() -> None:
    """Serves until a signal; exits with one line on standard error where it cannot start."""
    give_memory_back()
    try:
        settings = load_settings(os.environ)
        logs.configure(settings.log_level, settings.log_format, "admin")
        catch_stray()
        directory = settings.identity_dir_for("admin")
        identity = Identity.load(directory)
        renewal = Renewal(directory, identity)
        key = token_key.read(settings.token_key_file)
        with closing(
            unless_stopped(partial(waiting.for_database, settings.database_url, busy_timeout=_BUSY_TIMEOUT, tell=tell_waiting))
        ) as db:
            db.set_cache(_CACHE_KIB)
            unless_stopped(partial(waiting.while_away, partial(claim_token_key, db, key), tell=tell_waiting))
            revoked = RevokedIdentities(db)
            unless_stopped(partial(waiting.while_away, revoked.read, tell=tell_waiting))
            registry = service_registry("admin", certificate_ends=lambda: renewal.expires_at)
            clock = steady_clock(SystemClock(), registry)
            metrics, database = AdminMetrics(registry), DatabaseMetrics(registry)
            sessions, store = SessionCount(db, metrics, clock=clock), SessionStore(db, clock=clock)
            server = make_server(
                db=db,
                identity=identity,
                revoked=revoked.until,
                token_key=key,
                clock=clock,
                registry=registry,
                metrics=metrics,
            )

            def ready() -> bool:
                sessions.look()
                with suppress(DatabaseUnavailable):
                    store.end_over()
                return database.watched(db.is_reachable, lambda: db.trouble)

            bind(server, settings.admin_listen, identity, renewal=renewal)
            with (
                looking(revoked.look, every=READ_EVERY, name="revoked-identities"),
                start_probes(settings.admin_metrics_address, lambda: server.serving, registry=registry),
            ):
                serve_until_signal(server, lame_duck=settings.lame_duck, drain=settings.drain, ready=ready)
    except (SettingsError, IdentityError, BindError, GatewayError, OSError) as error:
        sys.exit(cannot_start("admin", error))


if __name__ == "__main__":
    main()
