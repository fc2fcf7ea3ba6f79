"""Who may call the auth service. A method without a row keeps the server from starting."""

from __future__ import annotations

from typing import Final

from gateway.rpc.access import AccessTable, Rule

SERVICE: Final = "gateway.auth.v1.AuthService"

_MAKES_CALLS: Final = Rule(identities=frozenset({"proxy"}), named=True)
_READS_BOOKS: Final = Rule(identities=frozenset({"proxy", "operator"}), named=True)
_PROXY_ALONE: Final = Rule(identities=frozenset({"proxy"}))

ACCESS: Final[AccessTable] = {
    f"/{SERVICE}/ValidateToken": _MAKES_CALLS,
    f"/{SERVICE}/RecordUsage": _MAKES_CALLS,
    f"/{SERVICE}/BatchValidateTokens": _MAKES_CALLS,
    f"/{SERVICE}/BatchRecordUsage": _MAKES_CALLS,
    f"/{SERVICE}/GetTokenUsage": _READS_BOOKS,
    f"/{SERVICE}/ListModels": _READS_BOOKS,
    f"/{SERVICE}/Beat": _PROXY_ALONE,
    f"/{SERVICE}/RenewLease": _MAKES_CALLS,
}
