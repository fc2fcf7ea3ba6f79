"""The `gateway` command put together: its commands, loaded when they are asked for, and what becomes of their faults."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from inspect import cleandoc

from cyclopts import App, CycloptsError, Parameter

from clients.cli.output import EXIT_CODES, FAULT, INTERRUPTED, OK, UNAVAILABLE, USAGE, Failure, fail, nobody_reads, styled
from gateway.errors import GatewayError
from gateway.process.settings import SettingsError

# Refusals of a service that are the fault of the command line, and those that pass.
_USAGE_REASONS = {"INVALID_ARGUMENT"}
_PASSING_REASONS = {"DATABASE_UNAVAILABLE", "ADMIN_UNAVAILABLE", "AUTH_UNAVAILABLE", "OVERLOADED", "THROTTLED"}


# Where each command is and what its help says; the list of all shows the first line. They stand here and not with the commands,
# as showing them must not load gRPC and the database.
_COMMANDS = {
    "up": (
        "clients.cli.up:up",
        """Start all services on this machine and keep them running.

        Starts demo, auth, admin and proxy, and starts again what dies. Ctrl-C or SIGTERM stops them in order; once more cuts.
        The first start makes keys and database, and shows once a password, a client token and a request to try.

        Example: GATEWAY_HTTP_PORT=8081 gateway up
        """,
    ),
    "init": (
        "clients.cli.init:init",
        """Make keys, certificates, database, first administrator and first token.

        What is there is left as it is. The first password and token are shown once, on standard output.

        Example: GATEWAY_DATA_DIR=/srv/gateway gateway init
        """,
    ),
    "token": (
        "clients.cli.tokens:app",
        """Make client tokens and look after them.

        What is changed holds from the token's next call on.

        Example: gateway token create --name app --max-amount 5 --json
        """,
    ),
    "explain": (
        "clients.cli.explain:explain",
        """Say whether a call would be let through now, rule by rule.

        Decided by the code that decides for real; nothing is held or counted. Exit code 0: granted; 4: refused.
        With --request: what became of a call, by the x-request-id of its answer.

        Example: gateway explain --token app --model gpt-4o --input-tokens 2000 --max-output-tokens 500
        """,
    ),
    "price": (
        "clients.cli.prices:app",
        """See what calls cost, and set prices with the day from which they hold.

        A new price binds the calls that are admitted from then on; open calls keep theirs.

        Example: gateway price set my-model --rate input=1.00 --rate output=2.00 --from 2027-01-01
        """,
    ),
    "reprice": (
        "clients.cli.repricing:reprice",
        """Compute settled calls at another price, and book the difference.

        Only calls charged by their provider's own usage. A second run books nothing twice. Services may run meanwhile.

        Example: gateway reprice --since 2027-01-01 --model my-model --dry-run
        """,
    ),
    "identity": (
        "clients.cli.identity:app",
        """Make certificates for internal services, and see which were made.

        Each names the methods of auth that its holder may call.

        Example: gateway identity create billing --out billing-identity
        """,
    ),
    "admin": (
        "clients.cli.admin:app",
        """Run the admin service; set administrators' passwords.

        Alone it becomes `python -m services.admin`.

        Example: GATEWAY_ADMIN_LISTEN=0.0.0.0:50052 gateway admin
        """,
    ),
    "auth": (
        "clients.cli.services:auth",
        """Run the auth service: the ledger, over gRPC.

        Becomes `python -m services.auth`.

        Example: GATEWAY_AUTH_LISTEN=0.0.0.0:50051 gateway auth
        """,
    ),
    "proxy": (
        "clients.cli.services:proxy",
        """Run the proxy: the HTTP edge.

        Becomes `python -m services.proxy`.

        Example: GATEWAY_HTTP_PORT=8081 gateway proxy
        """,
    ),
    "demo": (
        "clients.cli.services:demo",
        """Run the demo provider: an OpenAI-dialect server that needs no key.

        Becomes `python -m services.demo`.

        Example: GATEWAY_DEMO_PACE=20 gateway demo
        """,
    ),
    "check": (
        "clients.cli.check:check",
        """Look for faults in settings, keys, disk, database and ports.

        Changes nothing. Warnings do not count as faults.

        Example: gateway check --json
        """,
    ),
    "health": (
        "clients.cli.health:health",
        """Ask services of this machine whether they are ready.

        Exit code 0: all that were asked; 1: not all. As a container's health check: gateway health proxy.

        Example: gateway health --all
        """,
    ),
    "reconcile": (
        "clients.cli.host:reconcile",
        """Prove that every token's books add up: spent, held, counted.

        Exit code 1, with what differs, when they do not. Services may run meanwhile.

        Example: gateway reconcile --json
        """,
    ),
    "backup": (
        "clients.cli.backup:backup",
        """Put database, token key and certificates into one file.

        The services go on meanwhile. The file opens the whole installation: keep it as you keep its keys.

        Example: gateway backup --out gateway-2027-01-31.tar
        """,
    ),
    "restore": (
        "clients.cli.backup:restore",
        """Make an installation from a backup.

        Never touches one that is there: the data directory must have no database, no keys and no certificates.

        Example: GATEWAY_DATA_DIR=/srv/gateway-again gateway restore gateway-2027-01-31.tar
        """,
    ),
    "migrate": (
        "clients.cli.host:migrate",
        """Bring the database to this release's schema and prices, and load those of gateway.toml.

        Example: gateway migrate
        """,
    ),
}


def build() -> App:
    """The whole command. Importing a command's module is left until it runs."""
    app = App(
        name="gateway",
        help="Client tokens with models, budgets and an off switch, between your applications and the AI providers.",
        help_epilogue=EXIT_CODES,
        help_formatter="default" if styled() else "plain",
        version=lambda: version("gateway-zero"),
        default_parameter=Parameter(negative=(), show_default=False),
        help_format="plaintext",
    )
    for name, (path, text) in _COMMANDS.items():
        app.command(path, name=name, help=cleandoc(text))
    return app


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and gives its exit code. Never a traceback: what nobody foresaw is one line, too."""
    try:
        result = build()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        nobody_reads()
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as fault:
        if os.environ.get("GATEWAY_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exc()
        return fail(_failure(fault), as_json="--json" in arguments)
    return result if isinstance(result, int) else OK


def _failure(fault: Exception) -> Failure:
    """A fault as one line, an exit code and a word."""
    match fault:
        case Failure():
            return fault
        case CycloptsError():
            return Failure(f"{fault} See `gateway --help`.", code=USAGE, reason="usage")
        case SettingsError():
            return Failure("; ".join(fault.faults), code=USAGE, reason="settings")
        case GatewayError():
            code = USAGE if fault.reason in _USAGE_REASONS else UNAVAILABLE if fault.reason in _PASSING_REASONS else FAULT
            return Failure(fault.message, code=code, reason=fault.reason.lower())
        case OSError():
            where = f"{fault.filename}: " if fault.filename else ""
            return Failure(f"{where}{fault.strerror or fault}", reason="os_error")
        case _:
            return Failure(f"internal error: {type(fault).__name__}: {fault}", reason="internal")
