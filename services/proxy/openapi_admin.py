"""The routes of administration for `/openapi.json`: `/auth` and `/admin`. The tests hold them against the handlers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.proxy.openapi_parts import COUNT, ERROR, MONEY, MONEY_OR_NONE, STATUS, TEXT, Schema, answer, list_of, ref
from services.proxy.openapi_parts import object_of as _object

_MOMENT: Schema = {"type": "string", "format": "date-time"}
_MOMENT_OR_NONE: Schema = {"type": ["string", "null"], "format": "date-time"}
_TEXT_OR_NONE: Schema = {"type": ["string", "null"]}
_COUNT_OR_NONE: Schema = {"type": ["integer", "null"], "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_NAMES: Schema = {"type": "array", "items": TEXT}
_EXPIRY: Schema = {"type": ["string", "null"], "description": "A moment, or a day, which is included; null: never."}
_PERIODS = ["total", "daily", "weekly", "monthly"]
_LIMITS: Mapping[str, Schema] = {
    name: {"type": ["integer", "null"], "minimum": 0, "maximum": 2**31 - 1, "description": f"{what}; null: no limit; 0: none."}
    for name, what in (
        ("requests_per_minute", "Calls in a minute"),
        ("tokens_per_minute", "Tokens in a minute"),
        ("max_parallel_requests", "Calls at once"),
    )
}
_NAMES_OR_TEXT: Schema = {"type": ["array", "string", "null"], "items": TEXT, "description": "A list, or a text with commas."}

_TOKEN: Mapping[str, Schema] = {
    "id": COUNT,
    "name": TEXT,
    "display_hint": TEXT,
    "weak": _FLAG,
    "allowed_models": _NAMES,
    "enabled": _FLAG,
    "status": STATUS,
    "expires_at": _MOMENT_OR_NONE,
    "customer": TEXT,
    "remark": TEXT,
    "created_at": _MOMENT,
    "last_used_at": _MOMENT_OR_NONE,
    "max_amount": MONEY_OR_NONE,
    "amount_spent": MONEY,
    "held": MONEY,
    "remaining": MONEY_OR_NONE,
    "currency": TEXT,
    "budget_mode": {"type": "string", "enum": ["strict", "soft"]},
    "budget_period": {"type": "string", "enum": _PERIODS},
    "period_spent": MONEY,
    "resets_at": {**_MOMENT_OR_NONE, "description": "When the budget starts anew; null: never by itself."},
    **_LIMITS,
    "open_calls": COUNT,
    "allowed_ips": _NAMES,
    "previous_valid_until": {**_MOMENT_OR_NONE, "description": "Until when the secret before this one works too."},
    "prompt_tokens": COUNT,
    "completion_tokens": COUNT,
    "total_tokens": COUNT,
    "request_count": COUNT,
    "version": COUNT,
}
_SECRET: Schema = {"type": ["string", "null"], "description": "Shown this once; null: it was shown before."}
_CHANGEABLE: Mapping[str, Schema] = {
    "name": _TEXT_OR_NONE,
    "allowed_models": _NAMES_OR_TEXT,
    "enabled": _FLAG,
    "expires_at": _EXPIRY,
    "customer": _TEXT_OR_NONE,
    "remark": _TEXT_OR_NONE,
    "max_amount": MONEY_OR_NONE,
    "budget_mode": {"type": ["string", "null"], "enum": ["strict", "soft", None]},
    "budget_period": {"type": ["string", "null"], "enum": [*_PERIODS, None]},
    **_LIMITS,
    "allowed_ips": _NAMES_OR_TEXT,
}
_REPEAT: Schema = {"type": "string", "format": "uuid", "description": "With the same one, a repetition changes nothing more."}
_AMOUNT: Schema = {"type": "number", "description": "Added to the amount spent; below 0 gives back."}
_ADJUSTMENT: Mapping[str, Schema] = {
    "id": COUNT,
    "token_id": COUNT,
    "amount": _AMOUNT,
    "currency": TEXT,
    "reason": TEXT,
    "actor": TEXT,
    "created_at": _MOMENT,
}
_RATES: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["string", "array"]},
    "description": "By unit, per million tokens: a decimal in quotes, or a list of it and [input tokens above which, decimal].",
}
_PRICE: Mapping[str, Schema] = {
    "id": COUNT,
    "provider": _TEXT_OR_NONE,
    "model": TEXT,
    "pattern": {},
    "rates": _RATES,
    "currency": TEXT,
    "context_window": _COUNT_OR_NONE,
    "max_output_tokens": _COUNT_OR_NONE,
    "valid_from": _MOMENT_OR_NONE,
    "source": {"type": "string", "enum": ["admin", "file", "builtin"]},
    "created_at": _MOMENT,
    "retired_at": _MOMENT_OR_NONE,
}
_PAGE: Mapping[str, Schema] = {
    "page_size": {"type": "integer", "minimum": 0, "maximum": 1000},
    "page_token": {"type": "string", "description": "`next_page_token` of the page before; `cursor` is the same."},
    "cursor": TEXT,
}


def _page_of(name: str, record: str) -> Schema:
    return _object({name: list_of(ref(record)), "next_page_token": _TEXT_OR_NONE})


SCHEMAS: Mapping[str, Schema] = {
    "Login": {
        **_object({"username": TEXT, "password": TEXT, "kind": {"type": "string", "enum": ["terminal", "web"]}}),
        "required": ["username", "password"],
    },
    "LoggedIn": {
        **_object({"session_token": TEXT, "expires_at": _MOMENT}),
        "description": "A session of kind web comes as a cookie, without `session_token`.",
        "required": ["expires_at"],
    },
    "Password": _object({"old_password": TEXT, "new_password": TEXT}),
    "Nothing": _object({}),
    "Session": _object(
        {
            "id": {"type": "string", "format": "uuid"},
            "username": TEXT,
            "role": TEXT,
            "kind": {"type": "string", "enum": ["terminal", "web"]},
            "created_at": _MOMENT,
            "expires_at": _MOMENT,
            "last_used_at": _MOMENT,
            "client_ip": TEXT,
            "user_agent": TEXT,
        }
    ),
    "Sessions": _page_of("sessions", "Session"),
    "RevokedSession": _object({"id": {"type": "string", "format": "uuid"}, "revoked": {"const": True}}),
    "Token": _object(_TOKEN),
    "TokenWithSecret": _object({**_TOKEN, "token": _SECRET}),
    "NewToken": _object({**_TOKEN, "token": _SECRET, "warnings": _NAMES}),
    "ChangedToken": _object({**_TOKEN, "warnings": _NAMES}),
    "Tokens": _page_of("tokens", "Token"),
    "DeletedToken": _object({"id": COUNT, "deleted": {"const": True}}),
    "TokenCreation": _object({**_CHANGEABLE, "token": _TEXT_OR_NONE, "request_id": _REPEAT}, required=False),
    "TokenUpdate": {
        **_object({**_CHANGEABLE, "version": COUNT}, required=False),
        "description": "What is absent stays; null clears.",
    },
    "Toggle": _object({"enabled": {"type": ["boolean", "null"]}}, required=False),
    "Rotation": _object(
        {
            "grace_seconds": {
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": 604_800,
                "description": "For so long the old secret works on.",
            },
            "request_id": _REPEAT,
        },
        required=False,
    ),
    "ToppedUpToken": _object({**_TOKEN, "revived": {**_FLAG, "description": "Whether the budget was spent before."}}),
    "Customer": _object(
        {
            "customer": {**TEXT, "description": "Empty: tokens for which nobody was named."},
            "tokens": COUNT,
            "deleted_tokens": COUNT,
            "requests": COUNT,
            "prompt_tokens": COUNT,
            "completion_tokens": COUNT,
            "total_tokens": COUNT,
            "amount_spent": MONEY,
            "held": MONEY,
            "currency": TEXT,
        }
    ),
    "Customers": _page_of("customers", "Customer"),
    "TopUp": {**_object({"amount": MONEY, "request_id": _REPEAT}), "required": ["amount"]},
    "Call": _object(
        {
            "request_id": {"type": "string", "format": "uuid"},
            "at": _MOMENT,
            "token_id": COUNT,
            "token_name": TEXT,
            "model": TEXT,
            "response_model": _TEXT_OR_NONE,
            "provider": _TEXT_OR_NONE,
            "endpoint": TEXT,
            "stream": _FLAG,
            "state": {"type": "string", "enum": ["admitted", "settled", "released", "expired"]},
            "status": _COUNT_OR_NONE,
            "error_code": _TEXT_OR_NONE,
            "input_tokens": COUNT,
            "cached_input_tokens": COUNT,
            "output_tokens": COUNT,
            "reasoning_tokens": COUNT,
            "total_tokens": COUNT,
            "amount": MONEY,
            "source": _TEXT_OR_NONE,
            "held": MONEY,
            "ttft_ms": _COUNT_OR_NONE,
            "duration_ms": _COUNT_OR_NONE,
            "client_ip": TEXT,
            "user_agent": TEXT,
            "parent_request_id": _TEXT_OR_NONE,
            "settled_at": _MOMENT_OR_NONE,
        }
    ),
    "Calls": _page_of("requests", "Call"),
    "Refusal": _object(
        {
            "request_id": {"type": "string", "format": "uuid"},
            "at": _MOMENT,
            "token_id": {**_COUNT_OR_NONE, "description": "null: no live token had the secret."},
            "token_name": _TEXT_OR_NONE,
            "model": _TEXT_OR_NONE,
            "endpoint": _TEXT_OR_NONE,
            "state": {"type": "string", "enum": ["refused"]},
            "error_code": {
                **_TEXT_OR_NONE,
                "description": "Of what auth decided. The caller was told another one where his address had sent too many"
                " unknown tokens (429), or where that decision came too late (503).",
            },
            "reason": TEXT,
            "message": TEXT,
            "limit": {**_TEXT_OR_NONE, "description": "The limit that was met."},
            "limit_value": _COUNT_OR_NONE,
            "remaining": MONEY_OR_NONE,
            "held": MONEY_OR_NONE,
            "needed": MONEY_OR_NONE,
            "resets_at": _MOMENT_OR_NONE,
            "client_ip": TEXT,
        }
    ),
    "CallOrRefusal": {"oneOf": [ref("Call"), ref("Refusal")]},
    "Adjustment": _object(_ADJUSTMENT),
    "Adjustments": _page_of("adjustments", "Adjustment"),
    "BookedAdjustment": _object({**_ADJUSTMENT, "amount_spent": MONEY}),
    "AdjustmentCreation": {
        **_object({"amount": _AMOUNT, "reason": TEXT, "request_id": _REPEAT}),
        "required": ["amount", "reason"],
    },
    "Price": _object(_PRICE),
    "Prices": _page_of("prices", "Price"),
    "NewPrice": _object({**_PRICE, "warnings": _NAMES}),
    "PriceCreation": {
        **_object(
            {
                "model": TEXT,
                "provider": _TEXT_OR_NONE,
                "rates": _RATES,
                "context_window": _COUNT_OR_NONE,
                "max_output_tokens": _COUNT_OR_NONE,
                "valid_from": {"type": ["string", "null"], "description": "A moment, or a day, from its start; null: now."},
                "request_id": _REPEAT,
            }
        ),
        "required": ["model", "rates"],
    },
    "AuditRecord": _object(
        {
            "id": COUNT,
            "at": _MOMENT,
            "actor": TEXT,
            "action": TEXT,
            "subject": TEXT,
            "before": {},
            "after": {},
            "client_ip": TEXT,
            "request_id": _TEXT_OR_NONE,
        }
    ),
    "AuditRecords": _page_of("records", "AuditRecord"),
}

SECURITY: Sequence[Schema] = [{"session": []}, {"session-cookie": []}]
SCHEMES: Mapping[str, Schema] = {
    "session": {"type": "http", "scheme": "bearer", "description": "The `session_token` of POST /auth/login."},
    "session-cookie": {"type": "apiKey", "in": "cookie", "name": "__Host-gateway_session"},
}
_NUMBER: Schema = {"name": "id", "in": "path", "required": True, "schema": COUNT}
_UUID: Schema = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}


def _route(
    summary: str,
    schema: str,
    *,
    body: str = "",
    body_needed: bool = True,
    query: Mapping[str, Schema] | None = None,
    where: Schema | None = None,
    status: str = "200",
    media: Mapping[str, Schema] | None = None,
) -> Schema:
    described: Schema = {
        "summary": summary,
        "security": list(SECURITY),
        "responses": {status: answer("As asked", schema, **(media or {})), "default": ERROR},
    }
    parameters = [where] if where else []
    parameters += [{"name": name, "in": "query", "schema": kind} for name, kind in (query or {}).items()]
    if parameters:
        described["parameters"] = parameters
    if body:
        described["requestBody"] = {"required": body_needed, "content": {"application/json": {"schema": ref(body)}}}
    return described


_TEXT_MEDIA: Mapping[str, Schema] = {"application/x-ndjson": {"schema": TEXT}, "text/csv": {"schema": TEXT}}

PATHS: Mapping[str, Mapping[str, Schema]] = {
    "/auth/login": {"post": {**_route("Open a session", "LoggedIn", body="Login"), "security": []}},
    "/auth/logout": {"post": _route("End this session", "Nothing")},
    "/auth/session": {"get": _route("This session", "Session")},
    "/auth/password": {"post": _route("Change one's own password", "Nothing", body="Password")},
    "/admin/tokens": {
        "get": _route("Client tokens", "Tokens", query={"name": TEXT, "customer": TEXT, **_PAGE}),
        "post": _route(
            "Make a client token; 200: a repetition of an earlier request",
            "NewToken",
            body="TokenCreation",
            body_needed=False,
            status="201",
        ),
    },
    "/admin/tokens/{id}": {
        "get": _route("One of them", "Token", where=_NUMBER),
        "patch": _route("Change it", "ChangedToken", body="TokenUpdate", where=_NUMBER),
        "delete": _route("Delete it", "DeletedToken", where=_NUMBER),
    },
    "/admin/tokens/{id}/toggle": {
        "post": _route("Switch it on or off", "Token", body="Toggle", body_needed=False, where=_NUMBER)
    },
    "/admin/tokens/{id}/rotate": {
        "post": _route("Give it another secret", "TokenWithSecret", body="Rotation", body_needed=False, where=_NUMBER)
    },
    "/admin/tokens/{id}/topup": {"post": _route("Add to its budget", "ToppedUpToken", body="TopUp", where=_NUMBER)},
    "/admin/tokens/{id}/adjustments": {
        "get": _route("Its corrections, the latest first", "Adjustments", query=_PAGE, where=_NUMBER),
        "post": _route(
            "Correct what it has spent; with the same request_id once",
            "BookedAdjustment",
            body="AdjustmentCreation",
            where=_NUMBER,
            status="201",
        ),
    },
    "/admin/prices": {
        "get": _route(
            "The price book, the latest first",
            "Prices",
            query={"provider": TEXT, "model": TEXT, "source": TEXT, "retired": _FLAG, **_PAGE},
        ),
        "post": _route("Add a price; it binds calls admitted from its day on", "NewPrice", body="PriceCreation", status="201"),
    },
    "/admin/prices/{id}": {"delete": _route("Retire a price of an administrator", "Price", where=_NUMBER)},
    "/admin/logs/requests": {
        "get": _route(
            "Calls, the latest first",
            "Calls",
            query={
                "token": TEXT,
                "token_id": COUNT,
                "model": TEXT,
                "state": TEXT,
                "from": _MOMENT,
                "until": _MOMENT,
                **_PAGE,
            },
            media=_TEXT_MEDIA,
        )
    },
    "/admin/logs/requests/{id}": {"get": _route("One of them, or the refusal under this id", "CallOrRefusal", where=_UUID)},
    "/admin/usage/customers": {"get": _route("Each customer's totals, by name", "Customers", query=_PAGE)},
    "/admin/audit": {
        "get": _route("What administrators did", "AuditRecords", query={"action": TEXT, "subject": TEXT, **_PAGE})
    },
    "/admin/sessions": {"get": _route("Open sessions", "Sessions", query=_PAGE)},
    "/admin/sessions/{id}": {"delete": _route("End a session", "RevokedSession", where=_UUID)},
}
