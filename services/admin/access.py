"""Who may call what at admin: a row for every method. What no row allows is refused."""

from __future__ import annotations

from gateway.rpc.access import AccessTable, Rule
from gateway.sessions import ROLE_ADMIN, ROLE_PASSWORD_CHANGE

SERVICES = (
    "gateway.admin.v1.SessionService",
    "gateway.admin.v1.TokenService",
    "gateway.admin.v1.RequestLogService",
    "gateway.admin.v1.AuditService",
    "gateway.admin.v1.UsageService",
    "gateway.admin.v1.AdjustmentService",
    "gateway.admin.v1.PriceService",
    "gateway.admin.v1.IdentityService",
)

_OPERATOR = frozenset({"operator"})
_DOORS = frozenset({"operator", "proxy"})

_ADMINISTRATION = Rule(identities=_OPERATOR, roles=frozenset({ROLE_ADMIN}))
_OWN_SESSION = Rule(roles=frozenset({ROLE_ADMIN}))
# What is left to a session that was opened with a one-time password.
_ANY_SESSION = Rule(roles=frozenset({ROLE_ADMIN, ROLE_PASSWORD_CHANGE}))

ACCESS: AccessTable = {
    "/gateway.admin.v1.SessionService/Login": Rule(identities=_DOORS),
    "/gateway.admin.v1.SessionService/Logout": _ANY_SESSION,
    "/gateway.admin.v1.SessionService/GetSession": _ANY_SESSION,
    "/gateway.admin.v1.SessionService/ListSessions": _OWN_SESSION,
    "/gateway.admin.v1.SessionService/RevokeSession": _OWN_SESSION,
    "/gateway.admin.v1.SessionService/ChangePassword": _ANY_SESSION,
    "/gateway.admin.v1.SessionService/SetPassword": Rule(identities=_OPERATOR),
    "/gateway.admin.v1.TokenService/CreateToken": _ADMINISTRATION,
    "/gateway.admin.v1.TokenService/GetToken": _ADMINISTRATION,
    "/gateway.admin.v1.TokenService/ListTokens": _ADMINISTRATION,
    "/gateway.admin.v1.TokenService/UpdateToken": _ADMINISTRATION,
    "/gateway.admin.v1.TokenService/SetTokenEnabled": _ADMINISTRATION,
    "/gateway.admin.v1.TokenService/RotateToken": _ADMINISTRATION,
    "/gateway.admin.v1.TokenService/TopUpToken": _ADMINISTRATION,
    "/gateway.admin.v1.TokenService/DeleteToken": _ADMINISTRATION,
    "/gateway.admin.v1.RequestLogService/ListRequests": _ADMINISTRATION,
    "/gateway.admin.v1.RequestLogService/GetRequest": _ADMINISTRATION,
    "/gateway.admin.v1.RequestLogService/TailRequests": Rule(
        identities=_OPERATOR, roles=frozenset({ROLE_ADMIN}), cut_on_stop=True
    ),
    "/gateway.admin.v1.AuditService/ListAuditRecords": _ADMINISTRATION,
    "/gateway.admin.v1.UsageService/ListCustomers": _ADMINISTRATION,
    "/gateway.admin.v1.AdjustmentService/CreateAdjustment": _ADMINISTRATION,
    "/gateway.admin.v1.AdjustmentService/ListAdjustments": _ADMINISTRATION,
    "/gateway.admin.v1.PriceService/ListPrices": _ADMINISTRATION,
    "/gateway.admin.v1.PriceService/CreatePrice": _ADMINISTRATION,
    "/gateway.admin.v1.PriceService/RetirePrice": _ADMINISTRATION,
    "/gateway.admin.v1.IdentityService/RevokeIdentity": Rule(identities=_OPERATOR),
    "/gateway.admin.v1.IdentityService/ListRevokedIdentities": _ADMINISTRATION,
}
