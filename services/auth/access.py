"""Who may call the auth service. A method without a row keeps the server from starting."""

from __future__ import annotations

from typing import Final

from gateway.errors import PermissionDenied
from gateway.rpc.access import AccessTable, Rule

SERVICE: Final = "gateway.auth.v1.AuthService"

_MAKES_CALLS: Final = Rule(identities=frozenset({"proxy"}), named=True)
_MAY_EXPLAIN: Final = Rule(identities=frozenset({"proxy", "operator"}), named=True)
_READS_BOOKS: Final = Rule(identities=frozenset({"proxy", "operator"}), named=True)
_PROXY_ALONE: Final = Rule(identities=frozenset({"proxy"}))

ACCESS: Final[AccessTable] = {
    f"/{SERVICE}/ValidateToken": _MAY_EXPLAIN,
    f"/{SERVICE}/RecordUsage": _MAKES_CALLS,
    f"/{SERVICE}/BatchValidateTokens": _MAKES_CALLS,
    f"/{SERVICE}/BatchRecordUsage": _MAKES_CALLS,
    f"/{SERVICE}/GetTokenUsage": _READS_BOOKS,
    f"/{SERVICE}/ListModels": _READS_BOOKS,
    f"/{SERVICE}/Beat": _PROXY_ALONE,
    f"/{SERVICE}/ReleaseUnsent": _PROXY_ALONE,
    f"/{SERVICE}/RenewLease": _MAKES_CALLS,
}

DRY_RUNS_ALONE: Final = frozenset({"operator"})
"""Who may call ValidateToken to have a decision explained, and not to make calls."""
BY_TOKEN_ID: Final = frozenset({"operator"})
"""Who may name the token of a dry run by its id. Everybody else shows its secret, as for a call."""


def check_dry_run(name: str, *, dry_run: bool, by_id: bool) -> None:
    """Raises PermissionDenied where an identity that may call ValidateToken may not call it so."""
    if name in DRY_RUNS_ALONE and not dry_run:
        raise PermissionDenied(f"the identity {name} may call ValidateToken with dry_run alone")
    if by_id and name not in BY_TOKEN_ID:
        raise PermissionDenied(f"the identity {name} may not name a token by its id: give the token itself")
